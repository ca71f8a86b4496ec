"""What names a supervision: all that changes it, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muki_ray.workflow.score import integration
from tests import runs, tiny


def named(tmp_path: Path, **changes: Any) -> str:
    """The folder of the supervision that a run with these changes would make."""
    path = tmp_path / "corpus.parquet"
    if not path.exists():
        runs.models(tmp_path)
        runs.corpus(path, 20)
    run, tasks = runs.begun(runs.config(tmp_path, tmp_path / "run", path, **changes))
    return integration(run, tasks).folder.name


@pytest.mark.parametrize(
    ("method", "asks"),
    [
        ({}, True),
        ({"embedding": False}, False),
        ({"cotraining": False}, False),
        ({"kind": "vanilla_kd"}, False),
    ],
    ids=["default", "no embedding", "no co-training", "a baseline"],
)
def test_the_students_base_counts_where_it_may_be_asked(
    method: dict[str, Any], asks: bool, tmp_path: Path
) -> None:
    tiny.base(tmp_path / "other", seed=4)
    first = named(tmp_path, method=method)
    assert named(tmp_path, method=method) == first
    assert (named(tmp_path, method=method, student={"model": str(tmp_path / "other")}) != first) is asks
    shorter = {"model": str(tmp_path / "base"), "max_length": 8}
    assert (named(tmp_path, method=method, student=shorter) != first) is asks


def test_how_the_student_is_trained_does_not_count(tmp_path: Path) -> None:
    assert named(tmp_path, training={"epochs": 7}) == named(tmp_path)
