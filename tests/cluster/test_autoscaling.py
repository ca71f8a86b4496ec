"""A cluster that begins without any GPU: the whole job grows it as it needs, and leaves it as small as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import noted_job
import pytest
import torch
from nodes import Cluster, gpu_node
from safetensors.torch import load_file

from tests.cluster.jobs import GPUS, SHARDS, Job, Material, contents

pytestmark = pytest.mark.heavy


@dataclass(frozen=True)
class Grown:
    """A run on a growing cluster.

    Attributes:
        before, most, after: nodes beside the head, to the type of their GPU.
    """

    job: Job
    before: dict[str, str]
    most: dict[str, str]
    after: dict[str, str]


def workers(cluster: Cluster) -> dict[str, str]:
    """Nodes with a GPU that are alive, and its type."""
    prefix = "accelerator_type:"
    return {
        node: name.removeprefix(prefix)
        for node, resources in cluster.alive().items()
        for name in resources
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def grown(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")
    with Cluster(scaled={kind.lower(): gpu_node(kind) for kind in GPUS.values()}) as cluster:
        before, most = workers(cluster), dict[str, str]()
        job = Job([noted_job.__file__], folder, material.config(folder / "run"), cluster.address)

        def scored() -> bool:
            most.update(workers(cluster))
            return len(job.begun) == 2 * SHARDS

        job.until(scored)
        job.finish()
        cluster.wait(1)
        return Grown(job, before, most, workers(cluster))


def test_nodes_come_as_they_are_needed_and_go_when_they_are_idle(grown: Grown) -> None:
    assert grown.before == {} == grown.after
    assert sorted(grown.most.values()) == sorted(GPUS.values())
    assert {(note.teacher, grown.most[note.node]) for note in grown.job.begun} == set(GPUS.items())


def test_the_job_gives_what_the_local_run_gives(grown: Grown, material: Material) -> None:
    folders = "corpus", "evidence", "supervision"
    assert contents(grown.job.output, *folders) == contents(material.alone, *folders)
    ours, alone = weights(grown.job.output), weights(material.alone)
    assert ours.keys() == alone.keys()
    for name, tensor in ours.items():  # one sum is formed in another order
        assert torch.allclose(tensor, alone[name], atol=1e-5, rtol=0), name


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The student's."""
    return load_file(output / "student" / "model.safetensors")
