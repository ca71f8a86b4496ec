"""What is printed at the end of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from muki_ray.store import RunFolder
from muki_ray.workflow.conclude import _set_aside, _summary


def corpus(name: str, bad: int) -> Any:
    return SimpleNamespace(quarantined=bad, set_aside=f"{bad} rows of the {name} set aside")


def ended(tmp_path: Path, *corpora: Any, later: int = 0, **metrics: Any) -> Any:
    """A run at its end, with so many bad rows that only scoring found."""
    bad = corpora[0].quarantined + later
    rows = {"in": 1000, "out": 1000 - bad, "quarantined": bad, "scored": {"one": 7}}
    return SimpleNamespace(
        folder=RunFolder(str(tmp_path)),
        corpus=corpora[0],
        corpora=list(corpora),
        metrics={"rows": rows, **metrics},
        tracker=SimpleNamespace(ui_command=None),
    )


def test_rows_set_aside_are_named_with_reasons_and_place(tmp_path: Path) -> None:
    run = ended(tmp_path, corpus("a", 3), corpus("b", 2), later=1)
    lines = _summary(run, ()).splitlines()
    assert lines[0] == "rows:    1,000 in, 996 out, 4 quarantined; scored now: 7"
    assert [line.strip() for line in lines[1:4]] == _set_aside(run)
    listed = tmp_path / "supervision" / "*" / "quarantine-*.parquet"
    assert _set_aside(run) == [
        "corpus: 3 rows of the a set aside",
        "test set: 2 rows of the b set aside",
        f"corpus: 1 more row set aside (a teacher gave no finite answer), see {listed}",
    ]


RESULTS = {
    "student": {"accuracy": 0.5, "macro_f1": 0.4, "ece": 0.1},
    "selection": {"accuracy": None, "auroc": None, "rows": 0},
    "rows_tested": 1200,
}


def test_test_rows_that_no_teacher_can_get_right_are_said_under_the_table(tmp_path: Path) -> None:
    run = ended(tmp_path, corpus("a", 0), corpus("b", 0), **RESULTS, rows_outside_union=1100)
    table, note, *_ = _summary(run, ()).split("\n\n")
    assert table.splitlines()[-1].startswith("student")
    assert note == "1,100 of 1,200 test rows have a label that no teacher knows; they count as wrong"
    run.metrics["rows_outside_union"] = 0
    assert "no teacher knows" not in _summary(run, ())


def test_without_bad_rows_nothing_is_said_of_them(tmp_path: Path) -> None:
    run = ended(tmp_path, corpus("a", 0), corpus("b", 0))
    assert _set_aside(run) == []
    assert "set aside" not in _summary(run, ())
