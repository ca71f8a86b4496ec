"""Whether the student's workers find a place, asked before anybody scores for it."""

from __future__ import annotations

from typing import Any

import pytest

from muki_ray.config import TrainingConfig
from muki_ray.errors import ResourceError
from muki_ray.runtime import Cluster
from muki_ray.store import RunFolder
from muki_ray.workflow.learn import check_room

SMALL = {"CPU": 2.0}
A100 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0}


def cluster(*nodes: dict[str, float], may_grow: bool = False, may_add: Any = ()) -> Cluster:
    resources = {name: sum(node.get(name, 0.0) for node in nodes) for node in nodes for name in node}
    return Cluster(resources, may_grow, nodes, may_add)


def check(there: Cluster, output: str = "/run", **settings: Any) -> None:
    check_room(TrainingConfig(batch_size=32, **settings), RunFolder(output), there)


@pytest.mark.parametrize(
    ("there", "settings"),
    [
        (cluster(SMALL), {}),
        (cluster(SMALL), {"num_cpus": 16}),  # one worker trains in this process, which asks Ray for nothing
        (cluster(SMALL), {"accelerator_type": "A100"}),  # and so does a kind of GPU that is not there
        (cluster(SMALL), {"num_workers": 2}),
        (cluster(A100, A100), {"num_workers": 2, "accelerator_type": "A100"}),
        (cluster(SMALL, may_grow=True), {"num_workers": 4, "num_gpus": 1}),  # nobody knows what may come
        (cluster(SMALL, may_grow=True, may_add=(A100,)), {"num_gpus": 1}),
    ],
)
def test_there_is_room(there: Cluster, settings: dict[str, Any]) -> None:
    check(there, **settings)


@pytest.mark.parametrize(
    ("there", "settings", "message"),
    [
        (
            cluster(SMALL),
            {"num_workers": 4},
            r"^training asks for 4 workers with 1 CPUs and 0 GPUs each, .* the 2 CPUs",
        ),
        (cluster(SMALL), {"num_gpus": 1}, r"^training asks for 1 workers with . CPUs and 1 GPUs each"),
        (cluster(A100), {"num_workers": 2}, r"1 GPUs each, .* 1 GPUs that there are"),
        (cluster(A100, may_grow=True, may_add=(A100,)), {"num_gpus": 2}, "2 GPUs each"),  # no node has two
        (cluster(A100, may_grow=True, may_add=(A100,)), {"accelerator_type": "H100"}, "of type 'H100' each"),
        (cluster(SMALL, may_grow=True, may_add=(A100,)), {"num_workers": 2, "num_gpus": 1}, "do not fit"),
    ],
)
def test_there_is_none(there: Cluster, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        check(there, **settings)


def test_remote_storage_keeps_the_worker_out_of_this_process() -> None:
    with pytest.raises(ResourceError, match="16 CPUs"):
        check(cluster(SMALL), "s3://bucket/run", num_cpus=16)
