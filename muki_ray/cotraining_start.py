"""Where co-training begins: log odds of a row's owner from what the teachers say of it alone.

By the method's score as it is, one scale for all teachers: `s / (0.6 sd)`. Or by ranks, where scores are on scales of
their own. Not a teacher's scores alone, each of its *labels* has such a scale: what is foreign to a teacher is answered
with a few of its labels, and some of them with certainty. So a row is ranked among the rows that got the same answer from
the teacher: of those, the ones that it is most certain of are its own, as many as the label is thought to have.

Pure: arrays in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, M teachers, C_m labels of teacher m, G scripts, B bins (script, teacher, label), Q knots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muki_ray.cotraining_views import Views
from muki_ray.standardisation import share_below
from muki_ray.uncertainty import Floats

# temperature, in standard deviations of the scores
_TEMPERATURE = 0.6
_LEAST_SPREAD = 1e-9
# no rank and no share is nearer to 0 or 1
_LEAST_RANK, _LEAST_SHARE = 1e-3, 0.02
_KNOTS = 65

Groups = NDArray[np.int64]


class Start(Protocol):
    """Log odds of a row's owner."""

    def __call__(self, views: Views, group_N: Groups) -> NDArray[np.float64]:
        """`[N, M]`, up to a constant per row; `group_N`: the place of each row's script."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that it is; `start_of` gives back an equal object."""


@dataclass(frozen=True)
class ByScore:
    """The method's score over the spread of all teachers' scores together."""

    spread: float

    def __call__(self, views: Views, group_N: Groups) -> NDArray[np.float64]:
        """Reads the scores only."""
        if self.spread < _LEAST_SPREAD:
            return np.zeros(np.shape(views.scores_NM))
        return np.asarray(views.scores_NM, dtype=np.float64) / (_TEMPERATURE * self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """One number."""
        return {"spread": np.array(self.spread)}


@dataclass(frozen=True)
class ByRank:
    """`logit(rank) - logit(1 - share)`: 0 where as many rows with this answer lie above as the label has of them.

    Attributes:
        knots_BQ: quantiles of the teacher's certainty among the sample's rows of the bin.
        rows_B: how many these are; in a bin without any, every rank is one half.
        share_B: how many of the bin's rows belong to the label; the fewer there are, the nearer to the teacher's share of all.
    """

    knots_BQ: NDArray[np.float64]
    rows_B: NDArray[np.int64]
    share_B: NDArray[np.float64]

    def __call__(self, views: Views, group_N: Groups) -> NDArray[np.float64]:
        """Reads the teachers' answers and how certain they are."""
        odds = np.zeros(views.answers_NM.shape)
        for m, bin_N in enumerate(bins(views, group_N).T):
            for found, rows in _members(bin_N):
                count = self.rows_B[found]
                if count:
                    below = share_below(views.certainty_NM[rows, m], self.knots_BQ[found])
                    rank = (below * (count - 1) + 0.5) / count
                    odds[rows, m] = _logit(np.clip(rank, _LEAST_RANK, 1 - _LEAST_RANK))
            odds[:, m] += _logit(self.share_B[bin_N])
        return odds

    def counted(self, views: Views, group_S: Groups, belief_SM: Floats) -> ByRank:
        """The same ranks, but each label has as many of the sample's rows as the beliefs say."""
        own_B = np.zeros(len(self.rows_B))
        for m, bin_S in enumerate(bins(views, group_S).T):
            own_B += np.bincount(bin_S, weights=belief_SM[:, m], minlength=len(own_B))
        share_L = np.repeat(np.mean(belief_SM, axis=0), views.labels_M)
        return replace(self, share_B=_shares(own_B, self.rows_B, share_L))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What it is, by name."""
        return {f"rank_{name}": value for name, value in vars(self).items()}


def by_score(views: Views) -> Start:
    """From a sample of the corpus."""
    return ByScore(float(np.std(views.scores_NM)))


def by_rank(views: Views, group_S: Groups) -> ByRank:
    """From a sample of the corpus, as if each teacher owned as much as the root of its label count, its labels alike much of that.

    Were labels alike, a teacher of two beside one of two hundred would be left next to nothing; were teachers alike, the
    labels of the other.
    """
    labels = sum(views.labels_M)
    sizes_G = np.bincount(group_S)
    count = labels * len(sizes_G)
    knots_BQ, rows_B = np.zeros((count, _KNOTS)), np.zeros(count, dtype=np.int64)
    for m, bin_S in enumerate(bins(views, group_S).T):
        for found, rows in _members(bin_S):
            rows_B[found] = len(rows)
            knots_BQ[found] = np.quantile(views.certainty_NM[rows, m], np.linspace(0.0, 1.0, _KNOTS))
    roots_M = np.sqrt(views.labels_M)
    share_L = np.repeat(roots_M / roots_M.sum(), views.labels_M)
    own_B = np.outer(sizes_G, share_L / np.repeat(views.labels_M, views.labels_M)).reshape(-1)
    return ByRank(knots_BQ, rows_B, _shares(own_B, rows_B, share_L))


def bins(views: Views, group_N: Groups) -> NDArray[np.int64]:
    """Which rows each teacher's certainty is compared in: those of the same script with the same answer. `[N, M]`."""
    offset_M = np.concatenate([[0], np.cumsum(views.labels_M)])
    return np.asarray(group_N[:, None] * offset_M[-1] + offset_M[:-1] + views.answers_NM)


def start_of(arrays: Mapping[str, NDArray[Any]]) -> Start:
    """The object whose `arrays` these are.

    Raises:
        KeyError: they are none's.
    """
    if "rank_share_B" in arrays:
        return ByRank(arrays["rank_knots_BQ"], arrays["rank_rows_B"], arrays["rank_share_B"])
    return ByScore(float(arrays["spread"]))


def _members(bin_N: Groups) -> list[tuple[int, NDArray[np.int64]]]:
    """Each bin that has rows, and those rows."""
    order = np.argsort(bin_N, kind="stable")
    found, first = np.unique(bin_N[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, first[1:]), strict=True)) if len(bin_N) else []


def _shares(own_B: Floats, rows_B: NDArray[np.int64], share_L: Floats) -> NDArray[np.float64]:
    """How much of each bin belongs to its label. One more row counts as much as its teacher's share of everything.

    So a bin of few rows claims little more than others do, and one that the sample never had claims just as much.
    """
    usual_B = np.tile(share_L, len(rows_B) // len(share_L))
    share_B = (np.minimum(own_B, rows_B) + usual_B) / (rows_B + 1)
    return np.asarray(np.clip(share_B, _LEAST_SHARE, 1 - _LEAST_SHARE))


def _logit(p: Floats) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))
