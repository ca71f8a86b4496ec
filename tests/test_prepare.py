"""What is said and refused before any device is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from muki_ray.config import IntegrateConfig
from muki_ray.corpus import QUARANTINE
from muki_ray.labels import LabelSpace, TeacherLabels, join
from muki_ray.store import RunFolder
from muki_ray.workflow.prepare import read_corpora
from tests import runs


@pytest.fixture
def space() -> LabelSpace:
    return join([TeacherLabels("one", ("business", "tech")), TeacherLabels("two", ("film", "sport"))])


def wanted(tmp_path: Path, **corpus: object) -> IntegrateConfig:
    """A configuration over files of `tmp_path`; its models need not be there."""
    path = tmp_path / "corpus.csv"
    if not path.exists():
        path.write_text("text\na\nb\n")
    return runs.config(tmp_path, tmp_path / "run", path, corpus={"path": str(path), **corpus})


def test_rows_set_aside_are_said_right_after_reading_and_again_when_reused(
    tmp_path: Path, space: LabelSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.csv").write_bytes(b"text\ngood\n\xff1\n\xff2\nfine\n\xff3\n")
    (tmp_path / "test.csv").write_bytes(b"text,label\ngood,sport\n\xff,sport\n")
    config = wanted(tmp_path, test={"path": str(tmp_path / "test.csv")})
    for _ in range(2):
        corpus, test = read_corpora(config, RunFolder(config.output), space)
        said = capsys.readouterr().err.splitlines()
        listed, other = (one.folder.sub(QUARANTINE).location for one in (corpus, test))
        assert Path(listed).is_file()
        assert said[1:] == [
            f"corpus: 3 of 5 rows set aside (text is not UTF-8: 3), see {listed}",
            f"test set: 1 of 2 rows set aside (text is not UTF-8: 1), see {other}",
        ]


def test_of_good_rows_nothing_is_said(
    tmp_path: Path, space: LabelSpace, capsys: pytest.CaptureFixture[str]
) -> None:
    config = wanted(tmp_path)
    read_corpora(config, RunFolder(config.output), space)
    assert "set aside" not in capsys.readouterr().err
