"""What is said and refused before any device is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from muki_ray.config import IntegrateConfig
from muki_ray.corpus import QUARANTINE
from muki_ray.errors import CorpusError
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


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["sport", "tech"], None),
        (["sport", "b", "b", "a"], "3 of 4 rows have a label that no teacher knows (b, a) and will count as wrong"),
        (["sport", *"abcdefg"], "7 of 8 rows have a label that no teacher knows (a, b, c, d, e, ...) and"),
        (["sport", "word " * 20], f"1 of 2 rows have a label that no teacher knows ({'word ' * 7}wo...) and"),
    ],
)  # fmt: skip
def test_test_labels_that_no_teacher_knows_are_said_when_the_test_set_is_read(
    labels: list[str],
    says: str | None,
    tmp_path: Path,
    space: LabelSpace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"x,{label}\n" for label in labels))
    config = wanted(tmp_path, test={"path": str(tmp_path / "test.csv")})
    read_corpora(config, RunFolder(config.output), space)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("test set: ")]
    assert len(said) == (says is not None)
    assert says is None or said[0].startswith(f"test set: {says}")


def test_a_test_set_of_unknown_labels_alone_is_refused(tmp_path: Path, space: LabelSpace) -> None:
    (tmp_path / "test.csv").write_text("text,label\nx,football\n")
    config = wanted(tmp_path, test={"path": str(tmp_path / "test.csv")})
    with pytest.raises(CorpusError, match=r"\(football\) is one .* \(business, film, sport, tech\); check"):
        read_corpora(config, RunFolder(config.output), space)
