import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quality_temperature import expected_labels, fit_temperature, tempered

from muki_ray.evaluation import classification_metrics
from muki_ray.uncertainty import TeacherEvidence, softmax


def test_what_is_expected_by_hand() -> None:
    sampled = TeacherEvidence(np.zeros((2, 2)), mc_probs=np.array([[0.9, 0.1], [0.5, 0.5]]))
    plain = TeacherEvidence(np.log([[0.2, 0.8], [0.6, 0.4]]))
    share = np.array([[0.75, 0.25], [0.0, 1.0]])
    found = expected_labels(share, [sampled, plain], [np.array([0, 2]), np.array([1, 2])], 3)
    np.testing.assert_allclose(found, [[0.675, 0.25 * 0.2, 0.075 + 0.25 * 0.8], [0, 0.6, 0.4]])


@given(st.floats(0.2, 5.0), st.integers(2, 6), st.integers(0, 100))
def test_a_temperature_that_was_applied_is_found(temperature: float, labels: int, seed: int) -> None:
    honest = softmax(np.random.default_rng(seed).normal(size=(40, labels)) * 2)
    assert fit_temperature(tempered(honest, 1 / temperature), honest) == pytest.approx(temperature, rel=0.01)


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
