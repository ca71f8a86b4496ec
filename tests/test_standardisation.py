"""Standardisation against numbers worked by hand, and what must hold for any scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from muki_ray.errors import StoreError
from muki_ray.standardisation import Kind, fit, from_json

KINDS: list[Kind] = ["none", "zscore", "quantile", "owner"]
SCORES = arrays(np.float64, st.tuples(st.integers(2, 30), st.integers(1, 4)), elements=st.floats(-30, 30))


def test_zscore_by_hand() -> None:
    # means 2 and 0, standard deviations 1 and 2
    fitted = fit("zscore", np.array([[1.0, -2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(fitted(np.array([[4.0, 1.0]])), [[2.0, 0.5]])


def test_quantile_by_hand() -> None:
    fitted = fit("quantile", np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]))
    found = fitted(np.array([[0.0], [1.0], [2.5], [5.0], [9.0]]))
    np.testing.assert_allclose(found[:, 0], [0.0, 0.0, 0.375, 1.0, 1.0])


def test_ties_get_the_middle_of_their_shares() -> None:
    """A teacher that is certain of most rows must not win them all by a tie at the top."""
    fitted = fit("quantile", np.array([[0.0], [1.0], [1.0], [1.0], [1.0]]))
    np.testing.assert_allclose(fitted(np.array([[1.0]])), [[0.625]])


def test_none_changes_nothing_and_needs_no_sample() -> None:
    scores = np.array([[1.0, -2.0]])
    np.testing.assert_array_equal(fit("none", np.zeros((0, 2)))(scores), scores)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_says_the_same_of_every_row_gives_finite_scores(kind: Kind) -> None:
    sample = np.stack([np.full(50, 3.0), np.linspace(0, 1, 50)], axis=1)
    fitted = fit(kind, sample)(sample)
    assert np.isfinite(fitted).all()
    assert len(set(fitted[:, 0].round(9))) == 1


@pytest.mark.parametrize("kind", KINDS)
@given(sample=SCORES)
def test_it_never_turns_the_order_of_one_teacher_and_comes_back_from_json(
    kind: Kind, sample: np.ndarray
) -> None:
    fitted = fit(kind, sample)
    again = from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    order = np.argsort(sample[:, 0], kind="stable")
    assert (np.diff(fitted(sample)[order, 0]) >= -1e-9).all()
    np.testing.assert_array_equal(again(sample), fitted(sample))


@pytest.mark.parametrize("kind", ["zscore", "quantile"])
@given(sample=SCORES, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_another_scale_of_a_teacher_changes_nothing(
    kind: Kind, sample: np.ndarray, scale: float, shift: float
) -> None:
    sample = sample.round(3) + np.linspace(0, 1, len(sample))[:, None]  # no teacher says the same of all rows
    moved = sample * scale + shift
    np.testing.assert_allclose(fit(kind, moved)(moved), fit(kind, sample)(sample), atol=1e-6)


@pytest.mark.parametrize("kind", ["zscore", "quantile", "owner"])
@pytest.mark.parametrize("sample", [np.zeros((0, 2)), np.array([[np.nan, 1.0]]), np.zeros(3)])
def test_a_sample_that_teaches_nothing_is_refused(kind: Kind, sample: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a sample of scores must be"):
        fit(kind, sample)


@pytest.mark.parametrize(
    "content", [{}, {"kind": "other"}, {"kind": "zscore"}, {"kind": "quantile", "knots": 3}]
)
def test_what_cannot_be_read_says_so(content: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="delete the supervision folder"):
        from_json(content)
