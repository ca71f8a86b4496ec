"""The page says where the figures come from, and what each part of the method is worth."""

import quality_report as report
from quality_page import page

TEACHERS = [{"teachers": {"t1": {"own_accuracy": 0.9}}, "oracle": 0.8}]


def suite(name: str, **accuracy: float) -> dict[str, object]:
    facts = {"about": name, "scale": "tiny", "seeds": 1, "labels": 4, "corpus_rows": 10, "tests": {"test": 5}}
    runs = {method: [{"accuracy": value}] for method, value in accuracy.items()}
    return report.of_suite(facts, TEACHERS, {"upper_bound": [{"accuracy": 1.0}], **runs})


def test_parts_are_differences_of_accuracy_in_points() -> None:
    one = suite("one", default=0.9, default_no_mc=0.8, paper=0.9)
    two = suite("two", default=0.7, default_no_mc=0.72)
    text = page(
        {"tiny": {"command": "python x", "suites": {"one": one, "two": two}, "skipped": {"three": "no y"}}}
    )
    assert "`python x`" in text
    assert "| Monte-Carlo dropout, in the default | +4.0 | 1 of 2 | 1 | one +10.0 | two -2.0 |" in text
    assert "| the default rather than the paper's setting | +0.0 | 0 of 1 | 0 | one +0.0 | one +0.0 |" in text
    assert "| one | 0.9000 | 0.8000 | +10.0 |  |" in text
    assert "| two | 0.7000 | 0.7200 | -2.0 |  |" in text
    assert "co-training |" not in text  # its counterpart was not measured
    assert "three was skipped: no y" in text
    assert "### two" in text and "### All suites" in text


def test_one_suite_of_its_own_is_a_page_too() -> None:
    text = page({"trec": {"command": "python x", "suite": "trec", **suite("trec", default=0.9)}})
    assert "### trec" in text
    assert "| default | 1 | 90.0 %" in text
    # nothing to compare it with
    assert "What each part" not in text and "Where Monte-Carlo" not in text
