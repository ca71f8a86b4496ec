"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from muki_ray.report.table import result_rows, results_table


def metrics() -> dict[str, Any]:
    return {
        "student": {"accuracy": 0.95, "macro_f1": 0.94, "ece": 0.0312},
        "ensemble": {"accuracy": 0.7, "macro_f1": 0.65, "ece": 0.1},
        "teachers": {
            "news": {"accuracy": 0.4, "macro_f1": 0.2, "ece": 0.5, "own_accuracy": 0.98765},
            "a-much-longer-name": {"accuracy": 0.6, "macro_f1": None, "ece": 1, "own_accuracy": None},
        },
        "upper_bound": {"accuracy": 0.97, "macro_f1": 0.97, "ece": 0.01},
        "selection": {"accuracy": 0.9, "auroc": 0.99, "rows": 10},
        "rows_tested": 15,
        "training": {"kl": 0.1},
    }


def test_the_table_as_it_is_printed() -> None:
    assert results_table(metrics()).splitlines() == [
        "                            accuracy  macro-F1     ECE  own labels",
        "--------------------------  --------  --------  ------  ----------",
        "teacher news                  0.4000    0.2000  0.5000      0.9877",
        "teacher a-much-longer-name    0.6000         -  1.0000           -",
        "ensemble                      0.7000    0.6500  0.1000           -",
        "student                       0.9500    0.9400  0.0312           -",
        "upper_bound                   0.9700    0.9700  0.0100           -",
    ]


def test_rows_are_teachers_ensemble_student_and_the_rest() -> None:
    assert [(row.kind, row.name) for row in result_rows(metrics())] == [
        ("teacher", "news"),
        ("teacher", "a-much-longer-name"),
        ("ensemble", "ensemble"),
        ("student", "student"),
        ("compare", "upper_bound"),
    ]


def test_without_a_student_its_line_is_left_out() -> None:
    some = {key: value for key, value in metrics().items() if key != "student"}
    assert "student" not in results_table(some)


def test_nothing_evaluated_gives_no_table() -> None:
    assert results_table({}) == ""
    assert results_table({"rows_tested": 0, "training": {"kl": 0.1}}) == ""
