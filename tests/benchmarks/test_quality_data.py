from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from quality_data import material, places
from quality_suites import Suite

from muki_ray.errors import ConfigError

AT = {"teacher_epochs": 1, "student_epochs": 1}


def suite(**change: Any) -> Suite:
    content = {"about": "x", "teachers": {"data": "d", "into": 2}, "max_length": 8}
    return Suite.model_validate({**content, "tiny": AT, "small": AT, "full": AT, **change})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """d: labels a..d, 40 training and 8 test rows each, in two languages; e: labels d, z, 10 rows each."""
    for folder, labels, rows in (("d", "abcd", 40), ("e", "dz", 10)):
        (tmp_path / folder).mkdir()
        for split, count in (("train", rows), ("test", 8)):
            frame = [
                {"text": f"{split} {folder} {label} {i}", "label": label, "lang": "xy"[i % 2]}
                for label in labels
                for i in range(count)
            ]
            pd.DataFrame(frame).to_parquet(tmp_path / folder / f"{split}.parquet")
    return tmp_path


def test_teachers_share_the_rows_by_label_and_the_corpus_is_all_of_them(data: Path) -> None:
    found = material(suite(), "full", data, None)
    assert found.labels == {"t1": ["a", "b"], "t2": ["c", "d"]}
    assert {name: len(rows) for name, rows in found.teachers.items()} == {"t1": 80, "t2": 80}
    assert sorted(found.corpus["text"]) == sorted(
        [*found.teachers["t1"]["text"], *found.teachers["t2"]["text"]]
    )
    assert len(found.tests["test"]) == 32


def test_fewer_rows_are_drawn_once_for_all(data: Path) -> None:
    small = suite(full=AT | {"train_rows": 50, "test_rows": 10})
    one, other = (material(small, "full", data, None) for _ in range(2))
    assert len(one.corpus) == 50 and len(one.tests["test"]) == 10
    assert one.corpus.equals(other.corpus)
    own = {text for rows in one.teachers.values() for text in rows["text"]}
    assert own == set(one.corpus["text"])


def test_a_share_of_the_corpus_is_one_teachers(data: Path) -> None:
    found = material(suite(shares={"t1": 0.9}), "full", data, None)
    counts = Counter("t1" if label in "ab" else "t2" for label in found.corpus["label"])
    assert counts == {"t1": 80, "t2": 8}
    assert len(found.teachers["t2"]) == 80  # who still learns from all of its rows


def test_rows_without_a_teacher_stay_in_the_corpus_but_not_in_the_test(data: Path) -> None:
    deal = {"data": "d", "into": 1, "leave_out": ["c", "d"]}
    found = material(suite(teachers=deal), "full", data, None)
    assert found.union == ["a", "b"]
    assert Counter(found.corpus["label"].map(lambda label: label or "nobody")) == {
        "a": 40,
        "b": 40,
        "nobody": 80,
    }
    assert set(found.tests["test"]["label"]) == {"a", "b"}
    assert set(places(found.union, found.corpus["label"])) == {0, 1, -1}


def test_data_sets_are_drawn_evenly_and_a_small_one_entirely(data: Path) -> None:
    parts = [{"name": "one", "data": "d"}, {"name": "two", "data": "e"}]
    found = material(suite(teachers=parts, full=AT | {"train_rows": 60}), "full", data, None)
    assert {name: len(rows) for name, rows in found.teachers.items()} == {"one": 40, "two": 20}
    assert found.labels == {"one": ["a", "b", "c", "d"], "two": ["d", "z"]}


def test_teachers_of_some_labels_and_values_and_several_tests(data: Path) -> None:
    parts = [
        {"name": "x", "data": "d", "where": {"lang": "x"}, "labels": ["a", "b"]},
        {"name": "y", "data": "d", "where": {"lang": "y"}, "labels": ["c", "d"]},
    ]
    tests = {"both": [{"data": "d"}], "x": [{"data": "d", "where": {"lang": "x"}}]}
    found = material(suite(teachers=parts, tests=tests), "full", data, None)
    assert {name: len(rows) for name, rows in found.teachers.items()} == {"x": 40, "y": 40}
    assert len(found.corpus) == 160
    assert {name: len(rows) for name, rows in found.tests.items()} == {"both": 32, "x": 16}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"teachers": {"data": "nosuch", "into": 2}}, "no file nosuch/train.parquet"),
        ({"teachers": {"data": "d", "by": "nosuch", "into": 2}}, "no column 'nosuch'"),
        ({"corpus": [{"data": "d", "where": {"lang": "z"}}]}, "d has no lang 'z'"),
        ({"teachers": {"data": "d", "into": 4}}, "rows of 1 label"),
    ],
)
def test_what_is_not_there_is_one_line(data: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        material(suite(**change), "full", data, None)


def test_texts_that_no_teacher_has_a_label_for(data: Path) -> None:
    frame = pd.DataFrame([{"text": f"far {i}", "label": "oos"} for i in range(6)])
    frame.to_parquet(data / "d" / "far.parquet")
    found = material(suite(outside=[{"data": "d", "split": "far"}]), "full", data, None)
    assert found.outside is not None
    assert sorted(found.outside["text"]) == sorted(frame["text"])
    assert set(found.outside["label"]) == {None}
    assert set(found.outside["text"]) <= set(found.all_texts())
    assert not set(found.outside["text"]) & set(found.corpus["text"])
    assert material(suite(), "full", data, None).outside is None
    with pytest.raises(ConfigError, match=r"no file d/near\.parquet"):
        material(suite(outside=[{"data": "d", "split": "near"}]), "full", data, None)
