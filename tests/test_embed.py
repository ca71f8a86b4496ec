"""Who reads the sample with the student's base: only where asked for, and alike in this process and as a Ray task."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from muki_ray.config import StudentConfig, TrainingConfig
from muki_ray.config_method import MukiMethod, PaperMethod, UhcMethod
from muki_ray.errors import StudentError
from muki_ray.runtime import Cluster
from muki_ray.student.model import StudentSpec, inspect_student
from muki_ray.workflow import embed
from muki_ray.workflow.embed import embedder, reads
from tests import tiny

OURS = Cluster({"CPU": 2.0}, may_grow=False, nodes=({"CPU": 2.0},))
THEIRS = Cluster({"CPU": 2.0}, may_grow=True, nodes=({"CPU": 2.0},))
TRAINING = TrainingConfig(num_cpus=1)


@pytest.fixture
def student(tmp_path: Path) -> StudentSpec:
    return inspect_student(StudentConfig(model=str(tiny.base(tmp_path / "base"))), 16)


@pytest.mark.parametrize(
    ("method", "asks"),
    [
        (MukiMethod(), True),
        (MukiMethod(embedding=False), False),
        (MukiMethod(cotraining=False), False),
        (PaperMethod(), False),
        (UhcMethod(), False),
    ],
)
def test_methods_that_ask(method: MukiMethod, asks: bool, student: StudentSpec) -> None:
    assert reads(method) is asks
    assert (embedder(method, student, TRAINING, OURS) is not None) is asks


def test_progress_is_one_line(student: StudentSpec, capsys: pytest.CaptureFixture[str]) -> None:
    read = embedder(MukiMethod(), student, TRAINING, OURS)
    assert read is not None
    found = read(tiny.texts(50))
    assert found is not None and found.shape == (50, 16)
    assert re.fullmatch(r"embedding: 50 rows in \S+(, \S+ rows/s)?\n", capsys.readouterr().err)


def test_a_model_without_vectors_is_named(
    student: StudentSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embed, "embed", lambda *_: None)
    read = embedder(MukiMethod(), student, TRAINING, OURS, alone=False)
    assert read is not None and read(["a"]) is None
    assert "goes by the words alone" in capsys.readouterr().err


@pytest.mark.heavy
def test_a_ray_task_gives_the_same(
    student: StudentSpec, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tiny.texts(40)
    here, there = (embedder(MukiMethod(), student, TRAINING, cluster) for cluster in (OURS, THEIRS))
    assert here is not None and there is not None
    found = there(texts)
    assert found is not None
    np.testing.assert_allclose(found, here(texts), atol=1e-5)
    assert capsys.readouterr().err.count("embedding: 40 rows") == 2


@pytest.mark.heavy
def test_a_base_that_changed_meanwhile_is_the_users_error(
    student: StudentSpec, tmp_path: Path, ray_session: None
) -> None:
    tiny.base(tmp_path / "base", seed=3)
    read = embedder(MukiMethod(), student, TRAINING, THEIRS)
    assert read is not None
    with pytest.raises(StudentError, match="differs from the one the driver saw"):
        read(["a"])
