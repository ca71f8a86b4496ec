"""The helpers that benchmarks and these tests share lie with the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cluster.jobs import Material

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Material:
    """See `jobs.material`."""
    from tests.cluster import jobs

    return jobs.material(tmp_path_factory.mktemp("material"))
