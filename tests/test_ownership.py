"""The mixture over owners: it finds what made the scores, whatever the shares, and its odds are a posterior."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from muki_ray.ownership import OwnerMixture, fit_owners


def drawn(shares: list[float], rows: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Owners, and scores on scales of their own: as owner 3 deviations above a stranger's mean. `[S, M]`."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(len(shares), size=rows, p=shares)
    scale, centre = np.array([1.0, 10.0, 0.1])[: len(shares)], np.array([0.0, -5.0, 2.0])[: len(shares)]
    z = rng.normal(size=(rows, len(shares))) + 3.0 * (owner[:, None] == np.arange(len(shares)))
    return owner, z * scale + centre


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5]])
def test_it_finds_the_shares_and_the_owners(shares: list[float]) -> None:
    owner, scores = drawn(shares)
    fitted = fit_owners(scores)
    np.testing.assert_allclose(fitted.share_M, shares, atol=0.03)
    posterior = softmax(fitted(scores), axis=1)
    assert (posterior.argmax(axis=1) == owner).mean() > 0.93
    # calibrated: of the rows that it gives to a teacher with 60 to 90 %, about so many are that teacher's
    unsure = (posterior.max(axis=1) > 0.6) & (posterior.max(axis=1) < 0.9)
    right = (posterior.argmax(axis=1) == owner)[unsure]
    assert right.mean() == pytest.approx(posterior.max(axis=1)[unsure].mean(), abs=0.08)


def test_odds_are_the_ones_of_the_model_by_hand() -> None:
    """slope (mu1 - mu0) / sigma^2 = 3, offset log pi - slope * middle, for scores on the teacher's own scale."""
    _, scores = drawn([0.5, 0.5], rows=200_000)
    fitted = fit_owners(scores)
    np.testing.assert_allclose(fitted.slope_M, [3.0, 0.3], rtol=0.03)
    middles = np.array([1.5, 10.0])
    expected = np.log(0.5) - np.array([3.0, 0.3]) * middles
    np.testing.assert_allclose(fitted.offset_M, expected, atol=0.15)


def test_another_scale_of_a_teacher_changes_no_odds() -> None:
    _, scores = drawn([0.6, 0.4], rows=500)
    moved = scores * np.array([7.0, 0.01]) + np.array([3.0, -1.0])
    np.testing.assert_allclose(fit_owners(moved)(moved), fit_owners(scores)(scores), atol=1e-6)


def test_rows_that_nobody_owns() -> None:
    _, scores = drawn([0.5, 0.5], rows=6000)
    strangers = np.random.default_rng(1).normal(size=(2000, 2)) * [1.0, 10.0] + [0.0, -5.0]
    fitted = fit_owners(np.concatenate([scores, strangers]), with_nobody=True)
    assert fitted.nobody == pytest.approx(0.25, abs=0.05)
    assert fitted.owned(scores).mean() > 0.9 > 0.3 > fitted.owned(strangers).mean()
    assert (fit_owners(scores).owned(scores) == 1).all(), "without it every row has an owner"


@pytest.mark.parametrize("scores", [np.array([[1.0]]), np.array([[0.5], [0.7]]), np.zeros((3, 2))])
def test_little_or_nothing_to_learn_from_gives_finite_odds(scores: np.ndarray) -> None:
    fitted = fit_owners(scores)
    assert np.isfinite(fitted(scores)).all()
    assert all(slope >= 0 for slope in fitted.slope_M)


def test_it_comes_back_from_json() -> None:
    fitted = fit_owners(drawn([0.5, 0.5], rows=100)[1], with_nobody=True)
    assert OwnerMixture.from_json(fitted.to_json()) == fitted
