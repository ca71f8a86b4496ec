"""Where co-training begins: both ways, by hand and by what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.cotraining_start import ByRank, ByScore, by_rank, by_score, start_of


def test_scores_count_by_their_spread() -> None:
    scores_NM = np.array([[0.0, 1.0], [1.0, 0.0]])  # standard deviation 0.5
    np.testing.assert_allclose(by_score(scores_NM)(scores_NM, scores_NM), scores_NM / 0.3)


def test_scores_that_are_all_alike_say_nothing() -> None:
    same = np.full((4, 3), 0.7)
    np.testing.assert_array_equal(by_score(same)(same, same), np.zeros((4, 3)))


def test_ranks_by_hand() -> None:
    # ranks of five rows: 0, 1/4, 1/2, 3/4, 1; a teacher that owns a quarter is even with itself at 3/4
    certainty = np.array([[0.1], [0.2], [0.5], [0.6], [0.9]])
    odds = by_rank(certainty, np.array([0.25]))(certainty, certainty)
    np.testing.assert_allclose(odds[3], 0.0, atol=1e-12)
    np.testing.assert_allclose(odds[2], -np.log(3))  # logit(1/2) - logit(3/4)
    assert np.isfinite(odds).all()


def test_a_larger_share_claims_more() -> None:
    certainty = np.random.default_rng(0).random((50, 2))
    odds = by_rank(certainty, np.array([0.9, 0.1]))(certainty, certainty)
    assert (odds.argmax(axis=1) == 0).mean() > 0.8


@given(scale=st.floats(0.01, 100.0), power=st.integers(1, 3), seed=st.integers(0, 1000))
def test_ranks_do_not_ask_for_the_scale(scale: float, power: int, seed: int) -> None:
    certainty = np.random.default_rng(seed).random((30, 2))
    other = certainty.copy()
    other[:, 1] = scale * other[:, 1] ** power
    share = np.array([0.5, 0.5])
    np.testing.assert_allclose(
        by_rank(certainty, share)(certainty, certainty), by_rank(other, share)(other, other), atol=1e-6
    )


@pytest.mark.parametrize(
    "start", [ByScore(0.25), by_rank(np.random.default_rng(0).random((9, 2)), np.array([0.3, 0.7]))]
)
def test_it_comes_back_from_its_arrays(start: ByScore | ByRank) -> None:
    again = start_of(start.arrays())
    assert type(again) is type(start)
    some = np.random.default_rng(1).random((6, 2))
    np.testing.assert_array_equal(again(some, some), start(some, some))


def test_arrays_of_something_else_are_refused() -> None:
    with pytest.raises(KeyError):
        start_of({"knots": np.zeros(3)})
