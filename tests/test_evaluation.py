"""Metrics against values worked by hand, and their behaviour at the edges."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from muki_ray.errors import ConfigError, CorpusError
from muki_ray.evaluation import (
    RESERVED,
    check_compare_names,
    classification_metrics,
    confusion_matrix,
    evaluate_run,
    owners,
    selection_metrics,
    top_confusions,
)
from muki_ray.labels import LabelSpace, TeacherLabels, join

ABC = ("a", "b", "c")


def one_hot(predicted: list[int], size: int = 3) -> NDArray[np.float64]:
    return np.eye(size)[predicted]


def truth(*places: int) -> NDArray[np.int64]:
    return np.array(places, dtype=np.int64)


# -- classification_metrics --------------------------------------------------------------------------


def test_accuracy_and_macro_f1_by_hand() -> None:
    # a: precision 2/3, recall 1: F1 0.8; b: precision 1, recall 1/2: F1 2/3; c is not in truth: left out
    metrics = classification_metrics(one_hot([0, 0, 0, 1]), truth(0, 0, 1, 1), ABC)
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert metrics["rows"] == 4


def test_a_label_only_predicted_costs_recall_but_is_no_class() -> None:
    # a: precision 1, recall 1/2: 2/3; c was predicted once, but is not in truth
    metrics = classification_metrics(one_hot([0, 2]), truth(0, 0), ABC)
    assert metrics["macro_f1"] == pytest.approx(2 / 3)


def test_calibration_error_by_hand() -> None:
    # bins of width 1/15: 0.62 alone in (0.600, 0.667], wrong: gap 0.62;
    # 0.94 and 0.98 in (0.933, 1], one right: accuracy 0.5, confidence 0.96: gap 0.46
    probs_NC = np.array([[0.62, 0.38, 0.0], [0.94, 0.06, 0.0], [0.98, 0.0, 0.02]])
    metrics = classification_metrics(probs_NC, truth(1, 0, 1), ABC)
    assert metrics["ece"] == pytest.approx((0.62 + 2 * 0.46) / 3)


def test_bins_of_the_calibration_error_are_closed_above() -> None:
    # 0.6 = 9/15 and 0.59 are both in (8/15, 9/15]: one right, one wrong: |1 - 1.19| / 2
    probs_NC = np.array([[0.6, 0.4], [0.59, 0.41]])
    assert classification_metrics(probs_NC, truth(0, 1), ("a", "b"))["ece"] == pytest.approx(0.095)


def test_gold_outside_the_union_is_wrong_and_a_false_positive() -> None:
    # a: 1 hit, 1 row from outside: precision 1/2, recall 1: F1 2/3
    metrics = classification_metrics(one_hot([0, 0]), truth(0, -1), ABC)
    assert metrics["accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx(2 / 3)
    assert metrics["ece"] == pytest.approx(0.5)


def test_a_row_without_prediction_is_wrong_even_on_gold_outside() -> None:
    metrics = classification_metrics(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), truth(0, -1), ABC)
    assert metrics["accuracy"] == 0.0
    assert metrics["ece"] == 0.0  # no confidence, and never right


def test_all_gold_outside_has_no_macro_f1() -> None:
    metrics = classification_metrics(one_hot([0, 1]), truth(-1, -1), ABC)
    assert metrics["accuracy"] == 0.0
    assert metrics["macro_f1"] is None


@pytest.mark.parametrize(
    ("probs_NC", "truth_N"),
    [
        (one_hot([0, 1]), truth(0)),
        (one_hot([0], size=4), truth(0)),
        (np.zeros((0, 3)), truth()),
        (np.array([[np.nan, 0.5, 0.5]]), truth(0)),
        (np.array([[2.0, -1.0, 0.0]]), truth(0)),
        (np.array([[0.9, 0.9, 0.0]]), truth(0)),
        (one_hot([0]), truth(3)),
        (one_hot([0]), truth(-2)),
        (one_hot([0]), np.array([0.0])),
        (np.array([0.2, 0.3, 0.5]), truth(0)),
    ],
    ids=["rows", "labels", "empty", "nan", "logits", "sum", "above", "below", "float truth", "one dimension"],
)
def test_what_would_give_wrong_numbers_is_refused(probs_NC: NDArray[np.float64], truth_N: NDArray) -> None:
    with pytest.raises(ValueError, match=r"probabilities|gold label"):
        classification_metrics(probs_NC, truth_N, ABC)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=30), st.randoms())
def test_metrics_do_not_depend_on_the_order_of_rows(pairs: list[tuple[int, int]], random: Random) -> None:
    shuffled = pairs.copy()
    random.shuffle(shuffled)
    first, second = (
        classification_metrics(one_hot([p for p, _ in rows], 4), truth(*[t for _, t in rows]), "abcd")
        for rows in (pairs, shuffled)
    )
    assert first == pytest.approx(second)
    assert 0 <= first["accuracy"] <= 1
    assert first["ece"] == pytest.approx(1 - first["accuracy"])  # it is always sure


# -- owners and selection ----------------------------------------------------------------------------


@pytest.fixture
def space() -> LabelSpace:
    """Union a, b, c, d; `b` is known to both, `d` to none but the second."""
    return join([TeacherLabels("one", ("b", "a")), TeacherLabels("two", ("c", "b", "d"))])


def test_owner_is_the_one_teacher_that_knows_the_label(space: LabelSpace) -> None:
    assert owners(space, truth(0, 1, 2, 3, -1)).tolist() == [0, -1, 1, 1, -1]


def test_owners_refuse_places_outside_the_union(space: LabelSpace) -> None:
    with pytest.raises(ValueError, match="gold label"):
        owners(space, truth(4))


def test_selection_by_hand() -> None:
    # row 0 right, row 1 tied (the first wins: right), row 2 wrong, row 3 has no owner
    scores_NM = np.array([[0.9, 0.1], [0.5, 0.5], [0.6, 0.4], [0.0, 1.0]])
    metrics = selection_metrics(scores_NM, truth(0, 0, 1, -1))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    # right .9 .5 .4 against wrong .1 .5 .6: 3 + 1.5 + 1 of 9 pairs
    assert metrics["auroc"] == pytest.approx(5.5 / 9)
    assert metrics["rows"] == 3


def test_a_tie_goes_to_the_first_teacher() -> None:
    assert selection_metrics(np.array([[0.5, 0.5]]), truth(1))["accuracy"] == 0.0


def test_selection_without_owner_or_choice_is_none() -> None:
    none = {"accuracy": None, "auroc": None}
    assert selection_metrics(np.ones((2, 3)), truth(-1, -1)) == {**none, "rows": 0}
    assert selection_metrics(np.ones((2, 1)), truth(0, 0)) == {**none, "rows": 2}


@pytest.mark.parametrize(
    ("scores_NM", "owner_N"),
    [
        (np.ones((2, 2)), truth(0)),
        (np.array([[np.nan, 1.0]]), truth(0)),
        (np.array([[np.inf, 1.0]]), truth(0)),
        (np.ones((0, 2)), truth()),
        (np.ones((1, 2)), truth(2)),
        (np.ones((1, 2)), np.array([0.5])),
    ],
)
def test_selection_refuses(scores_NM: NDArray[np.float64], owner_N: NDArray) -> None:
    with pytest.raises(ValueError, match=r"scores|owner"):
        selection_metrics(scores_NM, owner_N)


# -- evaluate_run ------------------------------------------------------------------------------------


def run_inputs(space: LabelSpace) -> dict:
    """Gold a, b, c, d and one outside; teacher one is always right on its own, teacher two says c."""
    return {
        "space": space,
        "truth_N": truth(0, 1, 2, 3, -1),
        "logits": [
            np.array([[-5.0, 5], [5, -5], [5, -5], [5, -5], [5, -5]]),  # a b b b b
            np.array([[9.0, 0, 0]] * 5),  # c
        ],
        "scores_NM": np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]),
    }


def test_a_run_by_hand(space: LabelSpace) -> None:
    metrics = evaluate_run(
        **run_inputs(space),
        student_probs_NC=one_hot([0, 1, 2, 0, 0], 4),
        compare={"upper_bound": one_hot([0, 1, 2, 3, 0], 4)},
    )
    assert metrics["student"]["accuracy"] == 0.6
    assert metrics["upper_bound"]["accuracy"] == 0.8
    # the largest of all logits wins: 9 for c everywhere
    assert metrics["ensemble"]["accuracy"] == 0.2
    one, two = metrics["teachers"]["one"], metrics["teachers"]["two"]
    assert (one["accuracy"], one["own_accuracy"], one["own_rows"]) == (0.4, 1.0, 2)
    assert (two["accuracy"], two["own_accuracy"], two["own_rows"]) == (0.2, pytest.approx(1 / 3), 3)
    # owners are known on rows 0 (one), 2 and 3 (two); row 3 goes to the wrong one
    assert metrics["selection"]["accuracy"] == pytest.approx(2 / 3)
    assert metrics["selection"]["rows"] == 3
    assert (metrics["rows_tested"], metrics["rows_outside_union"]) == (5, 1)
    assert list(metrics["teachers"]) == ["one", "two"]
    assert set(metrics) - {"upper_bound"} <= set(RESERVED)
    assert set(metrics["student"]) == {"accuracy", "macro_f1", "ece"}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_merged_labels_of_a_teacher_add_up() -> None:
    # 0.4 + 0.35 for x beats 0.25 for y
    space = join([TeacherLabels("m", ("x", "y", "x")), TeacherLabels("n", ("y", "z"))])
    logits = [np.log(np.array([[0.3, 0.4, 0.3]])), np.zeros((1, 2))]
    metrics = evaluate_run(space=space, truth_N=truth(0), logits=logits, scores_NM=np.ones((1, 2)))
    assert metrics["teachers"]["m"]["own_accuracy"] == 1.0
    assert metrics["teachers"]["n"] == {
        "accuracy": 0.0, "macro_f1": 0.0, "ece": pytest.approx(0.5), "own_accuracy": None, "own_rows": 0,
    }  # fmt: skip


def test_without_student_there_is_no_student(space: LabelSpace) -> None:
    assert "student" not in evaluate_run(**run_inputs(space))


@pytest.mark.parametrize("name", [*RESERVED, " "])
def test_a_reserved_name_to_compare_with_is_refused(space: LabelSpace, name: str) -> None:
    with pytest.raises(ConfigError, match=r"test\.compare"):
        evaluate_run(**run_inputs(space), compare={name: one_hot([0] * 5, 4)})
    with pytest.raises(ConfigError):
        check_compare_names(["upper_bound", name])


def test_what_a_run_adds_to_its_metrics_is_reserved_too() -> None:
    assert {"rows", "corpus", "calibration", "rows_unanswered"} <= set(RESERVED)


def test_test_labels_that_no_teacher_knows_are_an_error(space: LabelSpace) -> None:
    with pytest.raises(CorpusError, match=r"none of the 5 test rows.*\(4 labels: a, b, c, d"):
        evaluate_run(**{**run_inputs(space), "truth_N": truth(-1, -1, -1, -1, -1)})


def test_a_run_refuses_what_does_not_fit(space: LabelSpace) -> None:
    inputs = run_inputs(space)
    wrong: list[dict] = [
        {"logits": inputs["logits"][:1]},
        {"logits": inputs["logits"][::-1]},
        {"logits": [inputs["logits"][0] * np.nan, inputs["logits"][1]]},
        {"scores_NM": inputs["scores_NM"][:, :1]},
        {"student_probs_NC": one_hot([0] * 4, 4)},
        {"compare": {"other": one_hot([0] * 5, 3)}},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"logits|scores|probabilities"):
            evaluate_run(**{**inputs, **change})


# -- confusion ---------------------------------------------------------------------------------------


def test_confusion_matrix_counts_gold_by_predicted() -> None:
    matrix_CC = confusion_matrix(one_hot([0, 1, 1, 2, 2]), truth(0, 0, 0, 2, -1))
    assert matrix_CC.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    only = {"gold": "a", "predicted": "b", "rows": 2, "share": pytest.approx(2 / 3)}
    assert top_confusions(matrix_CC, ABC) == [only]


def test_a_row_without_prediction_is_not_in_the_matrix() -> None:
    assert confusion_matrix(np.zeros((1, 3)), truth(1)).sum() == 0


def test_top_confusions_are_the_largest() -> None:
    matrix_CC = np.array([[9, 1, 5], [0, 9, 3], [2, 0, 9]])
    assert [(one["gold"], one["predicted"]) for one in top_confusions(matrix_CC, ABC, most=3)] == [
        ("a", "c"), ("b", "c"), ("c", "a"),
    ]  # fmt: skip
    assert matrix_CC.trace() == 27  # the caller's matrix is left alone
    with pytest.raises(ValueError, match="does not fit"):
        top_confusions(matrix_CC, ("a", "b"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=30))
def test_the_diagonal_is_the_accuracy(pairs: list[tuple[int, int]]) -> None:
    probs_NC, truth_N = one_hot([p for p, _ in pairs]), truth(*[t for _, t in pairs])
    matrix_CC = confusion_matrix(probs_NC, truth_N)
    assert matrix_CC.sum() == (truth_N >= 0).sum()
    accuracy = classification_metrics(probs_NC, truth_N, ABC)["accuracy"]
    assert matrix_CC.trace() / len(pairs) == pytest.approx(accuracy)
