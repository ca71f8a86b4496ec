"""What all tests share: an environment without network or Ray noise, and one Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
)
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("RAY_ADDRESS", None)

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with four logical CPUs for every test that needs one."""
    from muki_ray.runtime import ray

    ray.init(
        address="local", num_cpus=4, object_store_memory=400 << 20, include_dashboard=False, log_to_driver=False
    )  # fmt: skip
    yield
    ray.shutdown()
