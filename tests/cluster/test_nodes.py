"""Several Ray nodes on one machine: each teacher on the GPU that it asks for, and a node that dies in the middle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from nodes import Cluster, gpu_node, kill

from tests.cluster.jobs import GPUS, ROWS, SHARDS, Job, Material, contents

pytestmark = pytest.mark.heavy

_ROOT = Path(__file__).parents[2]
_SCORE_ONLY = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(_ROOT / "benchmarks")!r}, {str(_ROOT)!r}]
from muki_ray.config import load_config
from noted_job import take_notes
from tests import runs
take_notes(Path(sys.argv[1]), float(sys.argv[2]))
runs.score_only(load_config(sys.argv[4]))
"""


@dataclass(frozen=True)
class Disturbed:
    """A run during which a node was killed on which teacher one was at work.

    Attributes:
        kinds: type of the GPU by node id.
        killed: node id.
        lost: the shard that teacher one had begun there and not stored.
    """

    job: Job
    kinds: dict[str, str]
    killed: str
    lost: int


@pytest.fixture(scope="module")
def disturbed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("disturbed")
    evidence = Path("evidence") / material.evidence["one"]
    with Cluster() as cluster:
        kinds = ("A100", "T4", "A100")
        by_id = {node.id: node for node in cluster.add(*map(gpu_node, kinds))}
        job = Job(["-c", _SCORE_ONLY], folder, material.config(folder / "run"), cluster.address, pause=0.3)
        job.until(lambda: len(job.begun_by("one")) > 0)
        killed = job.begun_by("one")[0].node
        family = by_id[killed].family()

        def one_in_hand() -> bool:
            """Whether all that teacher one has begun is stored, but for one shard."""
            stored = len(list((job.output / evidence).glob("part-*")))
            return stored >= SHARDS // 3 and len(job.begun_by("one")) - stored == 1

        job.until(one_in_hand)
        kill(family)
        lost = job.begun_by("one")[-1].shard
        job.finish()
    return Disturbed(job, dict(zip(by_id, kinds, strict=True)), killed, lost)


def test_each_teacher_works_on_the_gpu_that_it_is_pinned_to(disturbed: Disturbed) -> None:
    seen = {(note.teacher, disturbed.kinds[note.node]) for note in disturbed.job.begun}
    assert seen == set(GPUS.items())


def test_the_teacher_goes_on_at_the_other_node_of_its_kind(disturbed: Disturbed) -> None:
    shards = Counter(note.node for note in disturbed.job.begun_by("one"))
    assert set(shards) == {node for node, kind in disturbed.kinds.items() if kind == "A100"}
    assert shards[disturbed.killed] < SHARDS, "it was to be killed in the middle"


def test_a_lost_node_costs_one_shard_of_one_teacher(disturbed: Disturbed) -> None:
    times = Counter((note.teacher, note.shard) for note in disturbed.job.begun)
    assert len(times) == 2 * SHARDS
    assert {key for key, count in times.items() if count > 1} <= {("one", disturbed.lost)}
    assert max(times.values()) <= 2


def test_every_row_is_there_once_and_all_is_equal_to_the_local_run(
    disturbed: Disturbed, material: Material
) -> None:
    folders = "corpus", "evidence", "supervision"
    there = contents(disturbed.job.output, *folders)
    assert there == contents(material.alone, *folders)
    parts = [path for path in there if path.startswith("supervision/") and "/part-" in path]
    rows = [row for path in parts for row in ids(disturbed.job.output / path)]
    assert sorted(rows) == list(range(ROWS))


def ids(path: Path) -> list[int]:
    """Row ids of a part."""
    found: list[int] = pq.read_table(path, columns=["row_id"])["row_id"].to_pylist()
    return found
