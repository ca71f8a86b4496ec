"""A temperature that brings predictions close to what they should be, without labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.calibration import expected_labels, fit_temperature, tempered
from muki_ray.evaluation import classification_metrics
from muki_ray.uncertainty import softmax


@given(st.floats(0.2, 5.0), st.integers(2, 6), st.integers(0, 100))
def test_a_temperature_that_was_applied_is_found(temperature: float, labels: int, seed: int) -> None:
    honest = softmax(np.random.default_rng(seed).normal(size=(4000, labels)) * 2)
    assert fit_temperature(tempered(honest, 1 / temperature), honest) == pytest.approx(temperature, rel=0.05)


@given(st.floats(0.2, 5.0), st.integers(0, 100))
def test_no_top_label_changes(temperature: float, seed: int) -> None:
    probs = np.random.default_rng(seed).dirichlet(np.ones(5), size=30)
    assert (tempered(probs, temperature).argmax(axis=1) == probs.argmax(axis=1)).all()
    np.testing.assert_allclose(tempered(probs, 1.0), probs, atol=1e-9)


def test_too_sure_a_student_is_mended_without_labels() -> None:
    rng = np.random.default_rng(0)
    honest = softmax(rng.normal(size=(4000, 4)) * 1.5)
    truth = (rng.random(len(honest))[:, None] > honest.cumsum(axis=1)).sum(axis=1)
    boastful = tempered(honest, 0.25)
    found = tempered(boastful, fit_temperature(boastful[:500], honest[:500]))
    before, after = (classification_metrics(p, truth, "abcd")["ece"] for p in (boastful, found))
    assert after < 0.03 < 0.2 < before


def test_certain_answers_and_no_rows() -> None:
    certain = np.eye(3)
    assert fit_temperature(certain, certain) < 10
    assert np.isfinite(tempered(certain, 3.0)).all()
    with pytest.raises(ValueError, match="needs rows"):
        fit_temperature(np.zeros((0, 3)), np.zeros((0, 3)))


def test_a_single_row_is_no_reason_to_be_certain() -> None:
    """One row that the student has right would be a reason for the least temperature there is."""
    assert 0.3 < fit_temperature(np.array([[0.6, 0.4]]), np.array([[1.0, 0.0]])) < 1
    assert 1 < fit_temperature(np.array([[0.6, 0.4]]), np.array([[0.0, 1.0]])) < 3


def test_what_is_expected_by_hand() -> None:
    # the first says (0.5, 0.5, 0, 0), the second (0, 0, 0.2, 0.8); mixed half and half, believed 3 to 1
    index = [np.array([0, 1]), np.array([2, 3])]
    found = expected_labels(
        np.array([[0.25, 0.25, 0.1, 0.4]]), np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]]), index
    )
    np.testing.assert_allclose(found, [[0.375, 0.375, 0.05, 0.2]])


def test_of_a_label_that_teachers_share_both_beliefs_count() -> None:
    # a, b of the first; b, c of the second, which is not believed: c goes, b is as likely as before
    index = [np.array([0, 1]), np.array([1, 2])]
    found = expected_labels(
        np.array([[0.3, 0.5, 0.2]]), np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]]), index
    )
    np.testing.assert_allclose(found, [[0.6 / 1.1, 0.5 / 1.1, 0.0]])


def test_labels_of_one_teacher_that_merge_count_once() -> None:
    found = expected_labels(
        np.array([[0.8, 0.2]]),
        np.array([[0.5, 0.5]]),
        np.array([[0.5, 0.5]]),
        [np.array([0, 0]), np.array([1])],
    )
    np.testing.assert_allclose(found, [[0.8, 0.2]])


@given(st.integers(1, 4), st.integers(0, 100))
def test_what_is_expected_is_what_was_mixed_where_beliefs_are(teachers: int, seed: int) -> None:
    """Mixing by `w` and asking for `w` changes nothing; asking for a certain teacher gives its word alone."""
    rng = np.random.default_rng(seed)
    index = [np.arange(2 * m, 2 * m + 2) for m in range(teachers)]
    said = rng.dirichlet(np.ones(2), (teachers, 5))
    mixed = rng.dirichlet(np.ones(teachers), 5)
    targets = np.concatenate([mixed[:, m : m + 1] * said[m] for m in range(teachers)], axis=1)
    np.testing.assert_allclose(expected_labels(targets, mixed, mixed, index), targets)
    certain = np.eye(teachers)[rng.integers(teachers, size=5)]
    found = expected_labels(targets, mixed, certain, index)
    for row, m in enumerate(certain.argmax(axis=1)):
        np.testing.assert_allclose(found[row, index[m]], said[m][row])
