"""What differs between a configuration and that of a finished student; that it is refused: `test_workflow.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muki_ray.config import IntegrateConfig, parse_config, to_yaml
from muki_ray.store import Folder
from muki_ray.student.export import finish
from muki_ray.workflow.finished import differences

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
    ("overrides", "expected"),
    [
        ([], []),
        (["corpus.test={path: other.csv, label: y}", "tracking.enabled=false", "output=/elsewhere"], []),
        (["corpus.test=null"], []),
        (["training.epochs=5", "method.tau=0.5"], ["method.tau is 0.5, was None", "training.epochs is 5, was 3"]),
        (["corpus.path=[a.txt, c.txt]"], ["corpus.path is ['a.txt', 'c.txt'], was ['a.txt', 'b.txt']"]),
        (["corpus.text=[text, second]"], ["corpus.text is ['text', 'second'], was ['text']"]),
        (["teachers.0.labels={neg: negative}"], ["teachers.0.labels is {'neg': 'negative'}, was None"]),
        (["teachers=[{name: one, model: m/one}]"], ["teachers is ['one'], was ['one', 'two']"]),
    ],
)  # fmt: skip
def test_what_differs(student: Folder, overrides: list[str], expected: list[str]) -> None:
    assert differences(config(*overrides), student) == expected


def test_one_of_an_earlier_version_is_compared_by_what_both_know(student: Folder) -> None:
    old = "".join(line for line in to_yaml(config()).splitlines(True) if "smoothing" not in line)
    finish(student, "student-1", "card", old + "gone: 3\n", {})
    assert differences(config("method.smoothing=0.3"), student) == []
    assert differences(config("method.tau=0.5"), student) == ["method.tau is 0.5, was None"]


def test_nothing_is_known_of_a_student_without_its_configuration(tmp_path: Path) -> None:
    assert differences(config(), Folder(str(tmp_path))) == []
