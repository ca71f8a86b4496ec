import pytest
import quality_report as report

FACTS = {
    "about": "x",
    "scale": "tiny",
    "seeds": 2,
    "labels": 4,
    "corpus_rows": 10,
    "tests": {"test": 5, "more": 6},
}
TEACHERS = [{"teachers": {"t1": {"own_accuracy": 0.9}}, "oracle": 0.8}] * 2


def test_mean_and_spread_over_seeds() -> None:
    found = report.over_seeds([{"a": 0.5, "b": {"c": 1.0}, "d": None}, {"a": 0.7, "b": {"c": 3.0}, "d": 1.0}])
    assert found["a"] == pytest.approx(0.6)
    assert found["a_sd"] == pytest.approx(0.02**0.5)  # sqrt((0.1^2 + 0.1^2) / 1)
    assert found["b"] == {"c": 2.0, "c_sd": pytest.approx(2**0.5)}
    assert found["d"] is None
    assert len(found["runs"]) == 2


def test_one_seed_has_no_spread() -> None:
    assert report.over_seeds([{"a": 0.5}]) == {"a": 0.5, "runs": [{"a": 0.5}]}


def test_a_suite_is_told_relative_to_its_upper_bound_seed_by_seed() -> None:
    runs = {
        "upper_bound": [{"accuracy": 0.5}, {"accuracy": 1.0}],
        "m": [{"accuracy": 0.5}, {"accuracy": 0.5}],
    }
    found = report.of_suite(FACTS, TEACHERS, runs)
    assert found["upper_bound"]["accuracy"] == 0.75
    assert list(found["methods"]) == ["m"]
    assert found["methods"]["m"]["of_bound"] == 0.75  # (1 + 0.5) / 2, not 0.5 / 0.75


def test_without_an_upper_bound_nothing_is_relative() -> None:
    found = report.of_suite(FACTS, TEACHERS, {"m": [{"accuracy": 0.5}]})
    assert "upper_bound" not in found and "of_bound" not in found["methods"]["m"]


def test_the_summary_is_a_mean_over_suites() -> None:
    suites = {
        "a": {
            "methods": {
                "m": {
                    "of_bound": 0.9,
                    "selection_accuracy": 0.8,
                    "corpus_selection_accuracy": 0.9,
                    "ece": 0.2,
                },
                "n": {"of_bound": 0.5},
            }
        },
        "b": {"methods": {"m": {"of_bound": 0.7, "selection_accuracy": 0.6, "ece": 0.1}}},
    }
    found = report.summary(suites)
    assert found["m"] == {
        "suites": 2,
        "of_bound": pytest.approx(0.8),
        "worst_of_bound": 0.7,
        "selection_error": pytest.approx(0.3),
        "corpus_selection_error": pytest.approx(0.1),  # of the one suite that has it
        "ece": pytest.approx(0.15),
        "tempered_ece": None,
    }
    assert found["n"] == {
        "suites": 1,
        "of_bound": 0.5,
        "worst_of_bound": 0.5,
        "selection_error": None,
        "corpus_selection_error": None,
        "ece": None,
        "tempered_ece": None,
    }


def test_the_table_names_every_method_and_every_further_test() -> None:
    run = {"accuracy": 0.5, "tests": {"test": 0.5, "more": 0.25}}
    suite = report.of_suite(FACTS, TEACHERS, {"upper_bound": [run, run], "m": [run, run]})
    text = report.suite_table("name", suite)
    assert "| method | accuracy | of bound | more |" in text
    assert "| m | 0.5000 ± 0.0000 | 100.0 % ± 0.0 | 0.2500 ± 0.0000 |" in text
    assert "10 corpus rows, 5 + 6 test rows" in text
