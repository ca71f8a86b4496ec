"""Targets and weights against numbers worked by hand, and what must hold for any teachers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from muki_ray.integration import (
    MARGIN_FLOOR,
    Supervision,
    concatenated_ensemble,
    integrate,
    margin,
    scatter,
    teacher_weights,
)
from muki_ray.uncertainty import softmax

SOFT: dict[str, Any] = {"how": "soft", "tau": 0.2, "with_margin": True, "temperature": 1.0}
HARD: dict[str, Any] = {**SOFT, "how": "hard"}
# teachers (a, b) and (b, c) over the union (a, b, c): they share b
FIRST, SECOND = np.array([0, 1]), np.array([1, 2])
LOGITS = [np.log([[3.0, 1.0]]), np.log([[1.0, 1.0]])]  # softmax: (3/4, 1/4) and (1/2, 1/2)


def _same(one: Supervision, other: Supervision) -> None:
    np.testing.assert_allclose(one.targets, other.targets, atol=1e-12)
    np.testing.assert_allclose(one.weights, other.weights, atol=1e-12)


# -- scatter ---------------------------------------------------------------------------------------------


def test_scatter_places_by_index_and_leaves_zeros() -> None:
    placed = scatter(np.array([[0.7, 0.3], [0.1, 0.9]]), np.array([3, 1]), 4)
    np.testing.assert_array_equal(placed, [[0.0, 0.3, 0.0, 0.7], [0.0, 0.9, 0.0, 0.1]])


def test_merged_labels_of_one_teacher_add_up() -> None:
    # labels 0 and 2 both became union label 1: 0.5 + 0.3
    placed = scatter(np.array([[0.5, 0.2, 0.3]]), np.array([1, 0, 1]), 2)
    np.testing.assert_allclose(placed, [[0.2, 0.8]], rtol=1e-12)


def test_scatter_of_no_rows() -> None:
    assert scatter(np.zeros((0, 2)), FIRST, 3).shape == (0, 3)


# -- weights of the teachers -----------------------------------------------------------------------------


def test_hard_takes_the_best_and_the_first_of_equals() -> None:
    weights = teacher_weights(np.array([[0.2, 0.9, 0.5], [0.4, 0.4, 0.1]]), "hard", 0.2)
    np.testing.assert_array_equal(weights, [[0, 1, 0], [1, 0, 0]])


def test_soft_weights_by_hand() -> None:
    # softmax([0.9, 0.5] / 0.2): the ratio is exp(0.4 / 0.2) = e^2, so 1 / (1 + e^-2) = 0.880797
    weights = teacher_weights(np.array([[0.9, 0.5]]), "soft", 0.2)
    expected = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(weights, [[expected, 1 - expected]], rtol=1e-12)
    np.testing.assert_allclose(weights, [[0.880797, 0.119203]], atol=1e-6)


def test_beliefs_are_weights_as_they_are() -> None:
    beliefs = np.array([[0.9, 0.1], [0.25, 0.75]])
    weights = teacher_weights(beliefs, "soft", None)
    np.testing.assert_array_equal(weights, beliefs)
    assert weights is not beliefs
    np.testing.assert_array_equal(teacher_weights(beliefs, "hard", None), [[1, 0], [0, 1]])


def test_margin_by_hand() -> None:
    # top two of each row: 0.9 - 0.5; a tie: only the floor; 1 - 0: capped at 1
    weights = margin(np.array([[0.5, 0.1, 0.9], [0.3, 0.3, 0.3], [0.0, 1.0, 0.0]]))
    np.testing.assert_allclose(weights, [0.4 + 1e-6, 1e-6, 1.0], rtol=1e-12)
    assert MARGIN_FLOOR == 1e-6


def test_one_teacher_has_no_margin() -> None:
    np.testing.assert_array_equal(margin(np.array([[0.1], [0.9]])), [1.0, 1.0])


# -- integration -----------------------------------------------------------------------------------------


def test_hard_target_by_hand() -> None:
    result = integrate(LOGITS, [FIRST, SECOND], 3, np.array([[0.5, 0.9]]), **HARD)
    np.testing.assert_allclose(result.targets, [[0.0, 0.5, 0.5]], rtol=1e-12)
    np.testing.assert_allclose(result.weights, [0.4 + 1e-6], rtol=1e-12)
    np.testing.assert_array_equal(result.teacher, [1])


def test_smoothing_gives_all_teachers_a_share_by_hand() -> None:
    # hard, so (0, 1) becomes 0.8 (0, 1) + 0.2 (1/2, 1/2) = (0.1, 0.9); the first says (0.75, 0.25, 0), the second (0, 0.5, 0.5)
    result = integrate(LOGITS, [FIRST, SECOND], 3, np.array([[0.5, 0.9]]), smoothing=0.2, **HARD)
    np.testing.assert_allclose(result.targets, [[0.075, 0.025 + 0.45, 0.45]], rtol=1e-12)
    # neither the weight nor the teacher named changes
    np.testing.assert_allclose(result.weights, [0.4 + 1e-6], rtol=1e-12)
    np.testing.assert_array_equal(result.teacher, [1])


def test_smoothing_changes_nothing_for_one_teacher() -> None:
    one = [LOGITS[0]], [FIRST], 2, np.array([[0.5]])
    np.testing.assert_array_equal(
        integrate(*one, smoothing=0.5, **SOFT).targets, integrate(*one, **SOFT).targets
    )


def test_soft_target_of_overlapping_teachers_by_hand() -> None:
    # w = 1 / (1 + e^-2) for the first; label b gets w / 4 from it and (1 - w) / 2 from the other
    result = integrate(LOGITS, [FIRST, SECOND], 3, np.array([[0.9, 0.5]]), **SOFT)
    w = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(
        result.targets, [[0.75 * w, 0.25 * w + 0.5 * (1 - w), 0.5 * (1 - w)]], rtol=1e-12
    )
    np.testing.assert_array_equal(result.teacher, [0])


def test_temperature_flattens_the_teachers_only() -> None:
    # sqrt 3 : 1 instead of 3 : 1
    result = integrate(LOGITS, [FIRST, SECOND], 3, np.array([[1.0, 0.0]]), **{**HARD, "temperature": 2.0})
    root = math.sqrt(3)
    np.testing.assert_allclose(result.targets, [[root / (1 + root), 1 / (1 + root), 0.0]], rtol=1e-12)


def test_without_margin_every_row_counts_one() -> None:
    scores = np.array([[0.9, 0.5]])
    result = integrate(LOGITS, [FIRST, SECOND], 3, scores, **{**SOFT, "with_margin": False})
    np.testing.assert_array_equal(result.weights, [1.0])


def test_concatenated_ensemble_by_hand() -> None:
    # exp of the logits side by side: 3, 1 | 2, 2 over 8; the shared label b gets 1/8 + 2/8
    logits = [np.log([[3.0, 1.0]]), np.log([[2.0, 2.0]])]
    result = concatenated_ensemble(logits, [FIRST, SECOND], 3)
    np.testing.assert_allclose(result, [[3 / 8, 3 / 8, 2 / 8]], rtol=1e-12)


def test_ensemble_depends_on_the_logit_scale_and_integration_does_not() -> None:
    shifted = [LOGITS[0] + 5.0, LOGITS[1]]
    places = [FIRST, SECOND]
    assert not np.allclose(
        concatenated_ensemble(shifted, places, 3), concatenated_ensemble(LOGITS, places, 3)
    )
    scores = np.array([[0.9, 0.5]])
    _same(integrate(shifted, places, 3, scores, **SOFT), integrate(LOGITS, places, 3, scores, **SOFT))


@pytest.mark.parametrize("how", ["hard", "soft"])
def test_extreme_logits_stay_finite(how: str) -> None:
    logits = [np.array([[1e4, -1e4]]), np.array([[-1e4, -1e4]])]
    result = integrate(logits, [FIRST, SECOND], 3, np.array([[1.0, 0.0]]), **{**SOFT, "how": how})
    assert np.isfinite(result.targets).all()
    np.testing.assert_allclose(result.targets.sum(axis=1), 1.0, rtol=1e-12)
    assert np.isfinite(concatenated_ensemble(logits, [FIRST, SECOND], 3)).all()


def test_no_rows() -> None:
    empty = np.zeros((0, 2))
    result = integrate([empty, empty], [FIRST, SECOND], 3, empty, **SOFT)
    assert result.targets.shape == (0, 3)
    assert result.weights.shape == result.teacher.shape == (0,)


@pytest.mark.parametrize("how", ["hard", "soft"])
def test_scores_that_are_not_numbers_are_refused(how: str) -> None:
    # argmax would pick the NaN as the best teacher
    with pytest.raises(ValueError, match="score is not finite"):
        integrate(LOGITS, [FIRST, SECOND], 3, np.array([[0.9, np.nan]]), **{**SOFT, "how": how})


def test_logits_that_are_not_numbers_are_refused_even_from_the_other_teacher() -> None:
    logits = [LOGITS[0], np.array([[np.nan, 0.0]])]
    with pytest.raises(ValueError, match="logit is not finite"):
        integrate(logits, [FIRST, SECOND], 3, np.array([[0.9, 0.5]]), **HARD)


def test_scores_and_logits_of_different_teachers_are_refused() -> None:
    with pytest.raises(ValueError, match="scores of 3 teachers, but logits of 2"):
        integrate(LOGITS, [FIRST, SECOND], 3, np.array([[0.9, 0.5, 0.1]]), **SOFT)
    with pytest.raises(ValueError, match="shorter"):
        integrate(LOGITS, [FIRST], 3, np.array([[0.9, 0.5]]), **SOFT)


# -- what must hold for any teachers ---------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn, most_teachers: int = 4) -> tuple[Any, ...]:
    """Logits and places per teacher, the size of the union, and scores on a grid of 0.01."""
    rows, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    logits, index = [], []
    for _ in range(draw(st.integers(1, most_teachers))):
        labels = draw(st.integers(2, 5))
        flat = draw(st.lists(st.floats(-30, 30), min_size=rows * labels, max_size=rows * labels))
        logits.append(np.array(flat).reshape(rows, labels))
        index.append(np.array(draw(st.lists(st.integers(0, size - 1), min_size=labels, max_size=labels))))
    cells = rows * len(logits)
    grid = draw(st.lists(st.integers(0, 100), min_size=cells, max_size=cells))
    return logits, index, size, np.array(grid).reshape(rows, len(logits)) / 100


@given(problems(), st.sampled_from(["hard", "soft"]), st.floats(0.01, 10), st.floats(0.1, 10))
def test_targets_are_distributions_and_weights_lie_in_the_unit_interval(
    problem: Any, how: str, tau: float, temperature: float
) -> None:
    settings = {"how": how, "tau": tau, "with_margin": True, "temperature": temperature}
    result = integrate(*problem, **settings)
    np.testing.assert_allclose(result.targets.sum(axis=1), 1.0, rtol=1e-10)
    assert (result.targets >= 0).all()
    assert ((result.weights > 0) & (result.weights <= 1)).all()


@given(problems())
def test_soft_becomes_hard_as_tau_vanishes(problem: Any) -> None:
    logits, index, size, scores = problem
    top = np.sort(scores, axis=1)
    assume(scores.shape[1] == 1 or (top[:, -1] > top[:, -2]).all())
    # best apart by 0.01 or more: the others' weights are at most exp(-0.01 / 1e-4) = e^-100
    soft = integrate(logits, index, size, scores, **{**SOFT, "tau": 1e-4})
    _same(soft, integrate(logits, index, size, scores, **HARD))


@given(problems(), st.randoms())
def test_the_order_of_the_teachers_does_not_matter(problem: Any, random: Any) -> None:
    logits, index, size, scores = problem
    order = list(range(len(logits)))
    random.shuffle(order)
    plain = integrate(logits, index, size, scores, **SOFT)
    shuffled = integrate(
        [logits[m] for m in order], [index[m] for m in order], size, scores[:, order], **SOFT
    )
    _same(plain, shuffled)
    # of equals, each order names its own first; the score is the same
    rows = np.arange(len(scores))
    np.testing.assert_array_equal(
        scores[rows, plain.teacher], scores[rows, np.array(order)[shuffled.teacher]]
    )


@given(problems(), st.randoms())
def test_the_order_of_a_teachers_labels_does_not_matter(problem: Any, random: Any) -> None:
    logits, index, size, scores = problem
    order = list(range(logits[0].shape[1]))
    random.shuffle(order)
    shuffled = [logits[0][:, order], *logits[1:]], [index[0][order], *index[1:]]
    _same(integrate(logits, index, size, scores, **SOFT), integrate(*shuffled, size, scores, **SOFT))


@given(problems(), st.randoms())
def test_the_order_of_the_union_permutes_the_targets(problem: Any, random: Any) -> None:
    logits, index, size, scores = problem
    order = list(range(size))
    random.shuffle(order)
    moved = integrate(logits, [np.array(order)[places] for places in index], size, scores, **SOFT)
    plain = integrate(logits, index, size, scores, **SOFT)
    np.testing.assert_allclose(moved.targets[:, order], plain.targets, atol=1e-12)


@given(problems(most_teachers=1), st.sampled_from(["hard", "soft"]))
def test_one_teacher_is_plain_distillation(problem: Any, how: str) -> None:
    logits, index, size, scores = problem
    result = integrate(logits, index, size, scores, **{**SOFT, "how": how})
    np.testing.assert_allclose(result.targets, scatter(softmax(logits[0]), index[0], size), rtol=1e-12)
    np.testing.assert_array_equal(result.weights, np.ones(len(scores)))


@given(problems(), st.floats(-1e3, 1e3))
def test_a_constant_shift_of_one_teachers_logits_changes_nothing(problem: Any, shift: float) -> None:
    logits, index, size, scores = problem
    shifted = [logits[0] + shift, *logits[1:]]
    one, other = (integrate(z, index, size, scores, **SOFT) for z in (logits, shifted))
    np.testing.assert_allclose(one.targets, other.targets, atol=1e-9)
