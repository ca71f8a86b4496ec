"""Scores against numbers worked by hand, and what must hold for any logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from muki_ray.config_method import MukiMethod
from muki_ray.uncertainty import (
    SAMPLED,
    SCORES,
    UNBOUNDED,
    TeacherEvidence,
    entropy,
    normalised_certainty,
    score_entropy,
    score_mc_entropy,
    scores,
    softmax,
)

LOGITS = arrays(
    np.float64, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=6), elements=st.floats(-50, 50)
)


def test_softmax_by_hand() -> None:
    # exp(ln 1), exp(ln 3) = 1, 3, over 4; temperature 2 takes square roots: 1, sqrt 3
    logits = np.log([[1.0, 3.0]])
    np.testing.assert_allclose(softmax(logits), [[0.25, 0.75]], rtol=1e-12)
    root = math.sqrt(3)
    np.testing.assert_allclose(softmax(logits, 2.0), [[1 / (1 + root), root / (1 + root)]], rtol=1e-12)


def test_softmax_computes_in_double_whatever_the_input() -> None:
    assert softmax(np.zeros((1, 2), dtype=np.float16)).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_extreme_logits_give_certainty_not_nan(dtype: type) -> None:
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype)
    np.testing.assert_array_equal(softmax(logits)[0], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(softmax(logits)[1], [1 / 3] * 3)
    np.testing.assert_allclose(score_entropy(TeacherEvidence(logits)), [1.0, 0.0], atol=1e-12)


def test_a_vanishing_temperature_takes_the_maximum() -> None:
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(softmax(np.array([[0.9, 0.5, 0.9]]), 5e-324), [[0.5, 0.0, 0.5]])


def test_entropy_by_hand() -> None:
    # uniform over 4: log 4; (1/2, 1/4, 1/4): 1/2 log 2 + 2 * 1/4 log 4 = 3/2 log 2; certain: 0 log 0 = 0
    probs = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(entropy(probs), [math.log(4), 1.5 * math.log(2), 0.0], rtol=1e-12)


def test_normalised_certainty_by_hand() -> None:
    # 1 - (3/2 log 2) / log 4 = 1 - 3/4
    np.testing.assert_allclose(normalised_certainty(np.array([[0.5, 0.25, 0.25, 0.0]])), [0.25], rtol=1e-12)
    # the same (3/4, 1/4) over 2 labels: H = 2 log 2 - 3/4 log 3, over log 2
    expected = 1 - (2 * math.log(2) - 0.75 * math.log(3)) / math.log(2)
    np.testing.assert_allclose(normalised_certainty(np.array([[0.75, 0.25]])), [expected], rtol=1e-12)


def test_label_count_does_not_move_the_ends_of_the_scale() -> None:
    for labels in (2, 5, 150):
        uniform = np.full((1, labels), 1 / labels)
        np.testing.assert_allclose(normalised_certainty(uniform), [0.0], atol=1e-12)
        np.testing.assert_allclose(normalised_certainty(np.eye(labels)), np.ones(labels), atol=1e-12)


def test_one_label_has_no_normalised_entropy() -> None:
    with pytest.raises(ValueError, match="needs 2 or more"):
        normalised_certainty(np.ones((3, 1)))


def test_mc_entropy_uses_the_mean_of_the_samples_and_entropy_the_logits() -> None:
    # two samples that are each certain, but disagree: mean (1/2, 1/2), so certainty 0 by Monte-Carlo;
    # the deterministic pass (3/4, 1/4) is worth 0.1887
    samples_KNC = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    evidence = TeacherEvidence(np.log([[3.0, 1.0]]), samples_KNC.mean(axis=0))
    np.testing.assert_allclose(score_mc_entropy(evidence), [0.0], atol=1e-12)
    np.testing.assert_allclose(score_entropy(evidence), [0.188722], atol=1e-6)


def test_mc_entropy_of_identical_samples_is_the_plain_entropy_score() -> None:
    # dropout rate 0: every sample is the deterministic pass
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 0.1, 0.2]])
    evidence = TeacherEvidence(logits, np.stack([softmax(logits)] * 4).mean(axis=0))
    np.testing.assert_allclose(score_mc_entropy(evidence), score_entropy(evidence), rtol=1e-12)


def test_mc_entropy_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="has none"):
        score_mc_entropy(TeacherEvidence(np.zeros((2, 3))))


def test_scores_stand_side_by_side_in_the_teachers_order() -> None:
    sure, unsure = TeacherEvidence(np.array([[1e4, 0.0]])), TeacherEvidence(np.zeros((1, 3)))
    np.testing.assert_allclose(scores("entropy", [sure, unsure]), [[1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(scores("entropy", [unsure, sure]), [[0.0, 1.0]], atol=1e-12)


def test_not_a_number_stays_visible() -> None:
    assert np.isnan(score_entropy(TeacherEvidence(np.array([[np.nan, 0.0]])))).all()


@given(LOGITS)
def test_softmax_rows_are_distributions_and_scores_lie_in_the_unit_interval(logits: np.ndarray) -> None:
    probs = softmax(logits)
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, rtol=1e-12)
    assert (probs >= 0).all()
    score = score_entropy(TeacherEvidence(logits))
    assert ((score >= 0) & (score <= 1)).all()


@given(LOGITS, st.floats(-1e3, 1e3))
def test_a_constant_shift_of_the_logits_changes_nothing(logits: np.ndarray, shift: float) -> None:
    np.testing.assert_allclose(softmax(logits + shift), softmax(logits), atol=1e-10)
    np.testing.assert_allclose(
        score_entropy(TeacherEvidence(logits + shift)), score_entropy(TeacherEvidence(logits)), atol=1e-9
    )


@given(LOGITS, st.randoms())
def test_the_score_does_not_depend_on_the_order_of_the_labels(logits: np.ndarray, random: object) -> None:
    order = list(range(logits.shape[1]))
    random.shuffle(order)  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        score_entropy(TeacherEvidence(logits[:, order])), score_entropy(TeacherEvidence(logits)), atol=1e-12
    )


# -- the other scores ------------------------------------------------------------------------------------

# probabilities 1/4, 3/4 and 1/2, 1/2; the second row's logits are shifted by 2
_TWO = np.log(np.array([[1.0, 3.0], [1.0, 1.0]])) + np.array([[0.0], [2.0]])


def test_scores_of_one_pass_by_hand() -> None:
    evidence = TeacherEvidence(_TWO)
    np.testing.assert_allclose(SCORES["msp"](evidence), [0.75, 0.5], rtol=1e-12)
    np.testing.assert_allclose(SCORES["max_logit"](evidence), [math.log(3), 2.0], rtol=1e-12)
    np.testing.assert_allclose(SCORES["energy"](evidence), [math.log(4), 2 + math.log(2)], rtol=1e-12)


def test_scores_of_samples_by_hand() -> None:
    """Row 0: the samples say (1, 0) and (0, 1), so all entropy is disagreement; row 1: twice (1/2, 1/2)."""
    evidence = TeacherEvidence(
        _TWO,
        mc_probs=np.array([[0.5, 0.5], [0.5, 0.5]]),
        mc_energy=np.array([3.0, -1.0]),
        mc_expected_entropy=np.array([0.0, math.log(2)]),
        mc_variance=np.array([0.5, 0.0]),  # 1/4 for each of two labels
    )
    np.testing.assert_allclose(SCORES["mutual_information"](evidence), [0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(SCORES["mc_variance"](evidence), [0.5, 1.0])
    np.testing.assert_allclose(SCORES["mc_energy"](evidence), [3.0, -1.0])
    np.testing.assert_allclose(SCORES["mc_entropy"](evidence), [0.0, 0.0], atol=1e-12)


def test_energy_of_huge_logits_is_finite() -> None:
    energy = SCORES["energy"](TeacherEvidence(np.array([[1e4, 1e4], [-1e4, -1e4]])))
    np.testing.assert_allclose(energy, [1e4 + math.log(2), -1e4 + math.log(2)])


@given(LOGITS, st.floats(-20, 20))
def test_a_shift_of_all_logits_moves_only_unbounded_scores(logits: np.ndarray, shift: float) -> None:
    """Softmax does not see it; the scale of max logit and energy is each teacher's own."""
    for name in ("entropy", "msp", "max_logit", "energy"):
        moved = shift if name in UNBOUNDED else 0.0
        found = SCORES[name](TeacherEvidence(logits + shift)) - SCORES[name](TeacherEvidence(logits))
        np.testing.assert_allclose(found, moved, atol=1e-6)


@given(LOGITS)
def test_bounded_scores_lie_in_0_1_and_energy_above_the_maximum(logits: np.ndarray) -> None:
    evidence = TeacherEvidence(logits)
    for name in SCORES.keys() - UNBOUNDED - SAMPLED:
        assert ((SCORES[name](evidence) >= 0) & (SCORES[name](evidence) <= 1)).all()
    gap = SCORES["energy"](evidence) - SCORES["max_logit"](evidence)
    assert ((gap >= 0) & (gap <= math.log(logits.shape[1]) + 1e-9)).all()


@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_sampled_scores_say_that_samples_are_missing(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs Monte-Carlo samples"):
        scores(name, [TeacherEvidence(_TWO)])


def test_the_configuration_names_every_score() -> None:
    for name in SCORES:
        assert MukiMethod(score=name).score == name  # type: ignore[arg-type]
        assert MukiMethod(score=name).bounded  # beliefs are probabilities
        assert MukiMethod(score=name, cotraining=False).bounded is (name not in UNBOUNDED)  # type: ignore[arg-type]
        assert MukiMethod(score=name, standardise="quantile", cotraining=False).bounded  # type: ignore[arg-type]
        assert not MukiMethod(score=name, standardise="zscore", cotraining=False).bounded  # type: ignore[arg-type]
