"""The stage that trains, in this process: reused, started from an earlier student, killed and run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from muki_ray.config import IntegrateConfig, parse_config
from muki_ray.labels import LabelSpace, TeacherLabels, join
from muki_ray.runtime import Cluster
from muki_ray.store import RunFolder
from muki_ray.student import here
from muki_ray.student.export import exported, finish, origin
from muki_ray.student.model import inspect_student
from muki_ray.student.previous import settle_init
from muki_ray.tracking import Tracker
from muki_ray.workflow import learn
from muki_ray.workflow.run import Run
from tests import tiny
from tests.student import toy

ROWS = [12, 12]
OURS = Cluster({"CPU": 1.0}, may_grow=False)


class Job:
    """Runs the stage in one output folder with one set of labels after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tiny.base(root / "base")

    def config(self, init: str) -> IntegrateConfig:
        return parse_config(
            {
                "teachers": [{"name": "one", "model": "unused"}],
                "corpus": {"path": "unused"},
                "student": {"model": str(self.root / "base"), "init": init},
                "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
                "output": str(self.root / "run"),
            }
        )

    def __call__(self, labels: str, init: str = "previous", finished: bool = True) -> dict[str, np.ndarray]:
        """Train over labels of one letter each; the student's tensors."""
        config, folder, space = self.config(init), RunFolder(str(self.root / "run")), union(labels)
        targets = np.eye(len(labels), dtype=np.float32)[np.arange(sum(ROWS)) % len(labels)]
        supervision = toy.write(folder.supervision(labels).location, ROWS, targets=targets)
        student = settle_init(init, folder, inspect_student(config.student, 32))
        run = Run(config, folder, [], space, student, [], Tracker())
        facts = {"rows_per_part": ROWS, "weight_mean": 1.0}
        name = learn.train(run, learn.reader(run, supervision, facts), OURS)
        if finished and exported(folder.student) != name:
            finish(folder.student, name, "", "", {"labels": list(space.names)})
        return load_file(folder.student.path("model.safetensors"))

    @property
    def trainings(self) -> list[Path]:
        return sorted((self.root / "run" / "checkpoints").glob("student-*"))


def union(labels: str) -> LabelSpace:
    return join([TeacherLabels("one", tuple(labels))])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(t, other[name]) for name, t in one.items())


def test_a_new_teachers_student_grows_out_of_the_last_one(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    first = job("ab")
    assert "starts from the base model, for there is no finished student" in capsys.readouterr().err
    assert same(job("ab"), first)
    assert "training: reused" in capsys.readouterr().err
    grown = job("abc")
    assert "training: starts from the student in" in capsys.readouterr().err
    name = origin(RunFolder(str(job.root / "run")).student)
    assert name.previous is not None and len(job.trainings) == 2
    # the same again trains nothing, though the student that it started from is no longer there
    assert same(job("abc"), grown)
    assert "training: reused" in capsys.readouterr().err
    assert origin(RunFolder(str(job.root / "run")).student) == name and len(job.trainings) == 2
    # it did start from it: from the base model it ends elsewhere
    fresh = Job(job.root / "fresh")("abc", init="base")
    assert not same(fresh, grown)
    head = "classifier.weight"
    assert np.abs(grown[head][:2] - first[head]).max() < np.abs(fresh[head][:2] - first[head]).max()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What comes out where nothing is killed."""
    other = Job(tmp_path_factory.mktemp("undisturbed"))
    other("ab")
    return other("abc")


@pytest.mark.parametrize("moment", ["training", "exporting", "concluding"])
def test_killed_and_run_again_it_starts_from_the_same_student(
    moment: str, job: Job, undisturbed: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    job("ab")
    if moment == "training":
        report = here.Here.report

        def dying(self: here.Here, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
            report(self, metrics, save)
            raise KeyboardInterrupt

        monkeypatch.setattr(here.Here, "report", dying)
    elif moment == "exporting":
        copy = learn.export

        def half(checkpoint: str, *rest: Any) -> None:
            copy(checkpoint, *rest)
            (job.root / "run" / "student" / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(learn, "export", half)
    if moment == "concluding":
        job("abc", finished=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            job("abc")
    monkeypatch.undo()
    assert same(job("abc"), undisturbed)
    assert len(job.trainings) == 2
