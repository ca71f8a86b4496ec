"""Whether a configuration is that of a finished student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muki_ray.config import IntegrateConfig, parse_config, to_yaml
from muki_ray.errors import ConfigError
from muki_ray.store import Folder
from muki_ray.student.export import finish
from muki_ray.workflow.finished import check_finished

CONTENT: dict[str, Any] = {
    "teachers": [{"name": "one", "model": "m/one"}, {"name": "two", "model": "m/two"}],
    "corpus": {"path": ["a.txt", "b.txt"], "test": {"path": "test.csv"}},
    "student": {"model": "m/base"},
    "output": "run",
}


def config(*overrides: str) -> IntegrateConfig:
    return parse_config(CONTENT, overrides)


@pytest.fixture
def student(tmp_path: Path) -> Folder:
    """A student that was made with `CONTENT`."""
    folder = Folder(str(tmp_path / "student"))
    finish(folder, "student-1", "card", to_yaml(config()), {})
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["corpus.test={path: other.csv, label: y, compare: {x: m/x}}"],
        ["corpus.test=null"],
        ["tracking.enabled=false", "output=/elsewhere"],
        ["training.num_gpus=1", "training.num_workers=2", "teachers.0.device=cpu"],
        ["teachers.1.resources.num_cpus=2", "teachers.0.dtype=float32"],
        ["teachers.0.model=/moved/one", "student.model=/moved/base/", "corpus.path=[/moved/a.txt, b.txt]"],
    ],
)
def test_what_may_differ(student: Folder, overrides: list[str]) -> None:
    check_finished(config(*overrides), student)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=5", r"^training\.epochs is 5, but the student at '.*student' was made with 3; evaluate"),
        ("method.tau=0.5", r"^method\.tau is 0\.5, but .* made with None"),
        ("method=paper", r"^method\.kind is 'paper', but .* made with 'muki'"),
        ("teachers=[{name: one, model: m/one}]", r"^teachers is 1, but .* made with 2"),
        ("teachers.1.model=m/three", r"^teachers\.1\.model is 'three', but .* made with 'two'"),
        ("corpus.path=[a.txt, c.txt]", r"^corpus\.path is \['a\.txt', 'c\.txt'\], but .* made with \['a\.txt', 'b\.txt'\]"),
        ("corpus.path=[a.txt, b.txt, c.txt]", r"^corpus\.path is \['a\.txt', 'b\.txt', 'c\.txt'\], but "),
        ("corpus.text=[text, second]", r"^corpus\.text is \['text', 'second'\], but .* made with \['text'\]"),
        ("teachers.0.labels={neg: negative}", r"^teachers\.0\.labels is \{'neg': 'negative'\}, but .* made with None"),
        ("student.calibrate=true", r"^student\.calibrate is True, but .* made with False"),
    ],
)  # fmt: skip
def test_what_may_not(student: Folder, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_finished(config(override), student)


def test_one_of_an_earlier_version_is_compared_by_what_both_know(student: Folder) -> None:
    old = "".join(line for line in to_yaml(config()).splitlines(True) if "smoothing" not in line)
    finish(student, "student-1", "card", old + "gone: 3\n", {})
    check_finished(config("method.smoothing=0.3"), student)
    with pytest.raises(ConfigError, match=r"^method\.tau"):
        check_finished(config("method.tau=0.5"), student)


def test_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no finished student at '.*nowhere'; run integrate"):
        check_finished(config(), Folder(str(tmp_path / "nowhere")))
