"""Scoring and training at once on a real Ray: overlapping, interrupted, failing, and the same student as one after the other."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file

from muki_ray import tasks, workflow
from muki_ray.config import IntegrateConfig, parse_config
from muki_ray.corpus import Corpus
from muki_ray.errors import StoreError
from muki_ray.pipeline import ScoringTask, scoring_task
from muki_ray.runtime import Cluster
from muki_ray.store import RunFolder, part_name
from muki_ray.student import data, here
from muki_ray.student.export import exported
from muki_ray.tracking import Tracker
from muki_ray.workflow import stream
from muki_ray.workflow.learn import reader, train
from muki_ray.workflow.plan import draw_up
from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
from muki_ray.workflow.run import Run
from muki_ray.workflow.score import score_and_integrate
from muki_ray.workflow.stream import Together, score_and_train, together
from tests import runs

ROWS, SHARDS = 60, 8  # of 8 rows, the last of 4
OURS = Cluster({"CPU": 4.0}, may_grow=False, nodes=({"CPU": 4.0},))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = runs.models(tmp_path_factory.mktemp("models"))
    runs.corpus(folder / "corpus.parquet", ROWS)
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards to learn from, and training that begins with them."""
    monkeypatch.setattr(tasks, "SAMPLE_ROWS", 16)
    monkeypatch.setattr(data, "_BUFFER_ROWS", 8)


def config(root: Path, output: Path, **training: Any) -> IntegrateConfig:
    wanted = runs.config(root, output, root / "corpus.parquet").model_dump()
    training = {"start": "streaming", "epochs": 1, "batch_size": 4, "num_cpus": None, **training}
    return parse_config({**wanted, "training": {**wanted["training"], **training}})


def prepared(wanted: IntegrateConfig) -> tuple[Run, list[ScoringTask]]:
    wanted = settled(wanted)
    folder = RunFolder(wanted.output)
    specs, space, student = inspect_all(wanted)
    run = Run(wanted, folder, specs, space, student, read_corpora(wanted, folder, space), Tracker())
    return run, [scoring_task(spec.resolved(False), wanted.method, run.corpora, folder) for spec in specs]


@dataclass(frozen=True)
class Gated(Corpus):
    """A corpus whose shards from `shard` on can only be read when there is a file `gate`; the last has one of its own."""

    gate: str = ""
    shard: int = 0
    fails: bool = False

    def read(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        gate = Path(self.gate + ("-last" if shard + 1 == self.shards else ""))
        deadline = time.monotonic() + 300
        while shard >= self.shard and not gate.exists():
            assert time.monotonic() < deadline, f"{gate} never opened"
            time.sleep(0.02)
        if self.fails and shard >= self.shard:
            raise StoreError(f"shard {shard} is gone")
        return super().read(shard, columns)


def gated(scoring: list[ScoringTask], gate: Path, shard: int, fails: bool = False) -> list[ScoringTask]:
    """The second teacher scores no shard from there on before the gate is open."""
    corpus = Gated(**vars(scoring[1].corpora[0]), gate=str(gate), shard=shard, fails=fails)
    return [scoring[0], replace(scoring[1], corpora=(corpus,))]


def at_first_step(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    step = here.Here.progress

    def progress(self: here.Here, done: int, total: int, metrics: dict[str, float]) -> None:
        step(self, done, total, metrics)
        if done == 1:
            act()

    monkeypatch.setattr(here.Here, "progress", progress)


def beside() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name in ("muki-ray-beside", "muki-ray-batches")]


def planned(run: Run, scoring: list[ScoringTask], cluster: Cluster = OURS) -> Together:
    found = together(run, scoring, cluster)
    assert found is not None
    return found


@pytest.mark.heavy
def test_interrupted_and_run_again_it_is_the_student_of_one_after_the_other(
    root: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scoring = prepared(config(root, tmp_path / "run", num_cpus=1))  # equal threads, equal bytes
    assert run.first_shards == 2
    seen: list[int] = []

    def interrupt() -> None:
        seen.extend(shard for _, shard in scoring[1].missing())
        (tmp_path / "gate").touch()
        raise KeyboardInterrupt

    plan = planned(run, gated(scoring, tmp_path / "gate", 5))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_first_step(patched, interrupt)
        score_and_train(run, plan, OURS)
    assert seen == [5, 6, 7], "training began before the teachers were through"
    assert scoring[1].missing(), "nobody waited for the last shard"
    (tmp_path / "gate-last").touch()
    for thread in beside():
        thread.join(300)
    assert not beside(), "with the next shards the graph ends, too"
    scoring[1].folders[0].remove([part_name(SHARDS - 1)])
    folder, facts, name = score_and_train(run, planned(run, scoring), OURS)
    assert facts["rows"] == ROWS and facts["learned_from"] == {"first_shards": 2}
    assert run.metrics["rows"]["scored"]["one"] == 0
    student = load_file(next((tmp_path / "run" / "checkpoints").glob("*/epoch-00001")) / "model.safetensors")
    # all is scored: then the same happens one after the other
    assert together(run, scoring, OURS) is None
    before = {part: folder.read_bytes(part) for part in folder.names()}
    for where in ("supervision", "checkpoints", "student"):
        shutil.rmtree(tmp_path / "run" / where)
    again, facts = score_and_integrate(run, draw_up(run.config, scoring, OURS), OURS)
    assert run.metrics["rows"]["scored"] == {"one": 0, "two": 0}
    assert again == folder and {part: folder.read_bytes(part) for part in folder.names()} == before
    assert train(run, reader(run, folder, facts), OURS) == name
    other = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert all(np.array_equal(tensor, other[key]) for key, tensor in student.items())


@pytest.mark.heavy
def test_scoring_that_fails_ends_the_training_with_its_error(
    root: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scoring = prepared(config(root, tmp_path / "run"))
    at_first_step(monkeypatch, (tmp_path / "gate").touch)
    plan = planned(run, gated(scoring, tmp_path / "gate", 5, fails=True))
    with pytest.raises(StoreError, match=r"^shard [567] is gone$"):  # two are read at once
        score_and_train(run, plan, OURS)
    assert not list((tmp_path / "run" / "checkpoints").glob("*/epoch-*"))


@pytest.mark.heavy
def test_on_a_cluster_the_student_has_a_place_of_its_own(
    root: Path, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray Train, from one end to the other; the last shard is scored when training has begun. A second run does nothing."""
    begun: list[bool] = []
    original = stream.train

    def training(run: Run, supervision: Any, *rest: Any) -> str:
        begun.append(supervision.folder.has(part_name(SHARDS - 1)))
        (tmp_path / "gate").touch()
        (tmp_path / "gate-last").touch()
        return original(run, supervision, *rest)

    monkeypatch.setattr(stream, "train", training)
    make = workflow.scoring_task
    monkeypatch.setattr(
        workflow,
        "scoring_task",
        lambda spec, *rest: (
            gated([make(spec, *rest)] * 2, tmp_path / "gate", 5)[1]
            if spec.name == "two"
            else make(spec, *rest)
        ),
    )
    wanted = config(root, tmp_path / "run", checkpoint_steps=4)
    result = workflow.integrate(wanted)
    assert begun == [False]
    rows = result.metrics["rows"]
    assert rows["in"] == rows["out"] == ROWS and rows["scored"] == {"one": ROWS, "two": ROWS}
    student = RunFolder(wanted.output).student
    name = exported(student)
    assert name is not None and (tmp_path / "run" / "checkpoints" / name).is_dir()
    weights = student.read_bytes("model.safetensors")
    again = workflow.integrate(wanted)
    assert again.metrics["rows"]["scored"] == {"one": 0, "two": 0} and begun == [False]
    assert exported(student) == name and student.read_bytes("model.safetensors") == weights


# -- who has what of the cluster, without Ray -------------------------------------------------------------


def grown(*cpus: float, gpus: float = 0.0) -> Cluster:
    """A cluster that others started, of nodes with so many CPUs; the last has the GPUs."""
    nodes = [{"CPU": count} for count in cpus]
    if gpus:
        nodes[-1]["GPU"] = gpus
    resources = {"CPU": sum(cpus), **({"GPU": gpus} if gpus else {})}
    return Cluster(resources, may_grow=True, nodes=tuple(nodes))


@pytest.mark.parametrize(
    ("cluster", "share", "actor"),
    [
        (OURS, 2, 0.9),  # half is the student's
        (Cluster({"CPU": 2.0}, False, ({"CPU": 2.0},)), 1, 0.9),  # no room to spare: they share the teachers'
        (grown(8.0), 4, 1.9),
        (grown(4.0, 2.0), 2, 1.8),
        (grown(4.0, 4.0, gpus=3.0), 2, 1.0),  # one GPU for the student, one for each teacher
        (grown(2.0), 1, None),  # the teachers would have to take turns
        (grown(2.0, 2.0, gpus=2.0), 1, None),
    ],
)
def test_the_students_share(
    cluster: Cluster,
    share: float,
    actor: float | None,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, scoring = prepared(config(root, tmp_path / "run"))
    capsys.readouterr()
    found = together(run, scoring, cluster)
    said = capsys.readouterr().err
    if actor is None:
        assert found is None and said.count("\n") == 1
        assert "after scoring, for the cluster does not hold all teachers and the student at once" in said
        return
    assert found is not None and said == ""
    assert found.training.num_cpus == share
    assert [(pool.teachers, pool.num_cpus) for pool in found.plan.waves[0]] == [
        (("one",), actor),
        (("two",), actor),
    ]


def test_a_corpus_that_is_learned_from_as_a_whole_is_scored_first(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tasks, "SAMPLE_ROWS", ROWS)
    run, scoring = prepared(config(root, tmp_path / "run"))
    assert together(run, scoring, OURS) is None
    assert "training: after scoring, for the corpus has no more rows than" in capsys.readouterr().err
    run, scoring = prepared(config(root, tmp_path / "run", start="after"))
    capsys.readouterr()
    assert together(run, scoring, OURS) is None
    assert capsys.readouterr().err == ""
