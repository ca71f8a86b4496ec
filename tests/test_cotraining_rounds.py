"""The rounds of co-training: the shares of the teachers."""

from __future__ import annotations

import numpy as np

from muki_ray.cotraining_rounds import View, retell, shares, teach


def test_shares_follow_from_rows_that_scores_are_sure_of() -> None:
    """40 rows are the first teacher's, 60 the second's; scores know 20 of each and lean to the first in the rest."""
    owner = np.repeat([0, 1], [40, 60])
    said = np.where(owner[:, None] == 0, (0.8, 0.2), (0.3, 0.7))
    first = np.full((100, 2), (0.51, 0.49))
    first[:20], first[-20:] = (0.95, 0.05), (0.05, 0.95)
    assert first.mean(axis=0)[0] > 0.5
    np.testing.assert_allclose(shares(said, first), (0.4, 0.6), atol=0.02)


def test_shares_stay_those_of_the_scores_where_texts_say_nothing() -> None:
    rng = np.random.default_rng(0)
    first = rng.dirichlet((3, 1, 1), 300)
    said = np.array([0.6, 0.2, 0.2]) + 1e-3 * rng.standard_normal((300, 3))
    np.testing.assert_allclose(shares(said, first), first.mean(axis=0), atol=0.02)


def test_a_teacher_that_no_row_prefers_keeps_its_share() -> None:
    first = np.tile([0.6, 0.3, 0.1], (50, 1))
    np.testing.assert_allclose(shares(first, first), (0.6, 0.3, 0.1), atol=0.01)


def test_what_others_believe_is_told_on() -> None:
    """A text's classifier that would find nothing from an empty start learns who owns what from given beliefs."""
    owner = np.arange(90) % 2
    rows = np.eye(2)[owner] - 0.5
    place, group = np.arange(90) % 3, np.zeros(90, np.int64)
    given = np.where(np.eye(2)[owner] > 0, 0.9, 0.1)
    told = retell(np.zeros((90, 2)), given, View(rows, place, 1.0), View(rows, place, 3.0), group)
    assert (told.belief.argmax(axis=1) == owner).all()
    np.testing.assert_allclose(told.share_GM, [given.mean(axis=0)])
    empty = teach(np.zeros((90, 2)), View(rows, place, 1.0), View(rows, place, 3.0), group)
    np.testing.assert_allclose(empty.belief, 0.5, atol=1e-6)
