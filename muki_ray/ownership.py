"""Who owns a row: a mixture over the teachers, fitted to their scores without labels.

Each row is owned by one teacher (the one that knows its label), or by none. A teacher's score is normal with one mean
on the rows that it owns and a lower mean on all others; the spread is the same. What is hidden is the owner:
expectation-maximisation finds means, spreads and the share of rows that each teacher owns, so no teacher need own a like
share. The log odds of ownership are then a line in the teacher's own score:

    l_m(s) = log pi_m + (mu1_m - mu0_m) / sigma_m^2 * (s - (mu1_m + mu0_m) / 2)

and `softmax(l)` over the teachers is the probability that each owns the row (with `log pi_0` for nobody). In words:
every teacher gets a temperature and a bias, those under which the corpus looks most like rows with one owner each.

Pure: arrays in, plain numbers out.

Shapes: S rows of a sample, N rows, M teachers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from muki_ray.uncertainty import Floats

_STEPS = 200
_SETTLED = 1e-7  # mean log-likelihood gained per row
# two rows' worth of prior knowledge per teacher keeps shares off 0
_PRIOR_ROWS = 1.0
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True)
class OwnerMixture:
    """A fitted mixture.

    Attributes:
        slope_M, offset_M: of the log odds, `offset + slope * score`; a slope is never negative.
        share_M: part of the corpus that each teacher owns.
        nobody: part of the corpus that no teacher owns; 0 where every row must have an owner.
    """

    slope_M: tuple[float, ...]
    offset_M: tuple[float, ...]
    share_M: tuple[float, ...]
    nobody: float = 0.0

    def __call__(self, scores_NM: Floats) -> NDArray[np.float64]:
        """Log odds of ownership, prior included, `[N, M]`; their softmax is the posterior."""
        return np.asarray(scores_NM, dtype=np.float64) * np.array(self.slope_M) + np.array(self.offset_M)

    def owned(self, scores_NM: Floats) -> NDArray[np.float64]:
        """Probability that any teacher owns the row, `[N]`; 1 where every row must have an owner."""
        if not self.nobody:
            return np.ones(len(scores_NM))
        some_N = logsumexp(self(scores_NM), axis=1)
        return np.asarray(1.0 / (1.0 + np.exp(np.log(self.nobody) - some_N)))

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `from_json` gives back an equal object."""
        return {
            "kind": "owner",
            "slope": list(self.slope_M),
            "offset": list(self.offset_M),
            "share": list(self.share_M),
            "nobody": self.nobody,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> OwnerMixture:
        """The object that `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        slope, offset, share = (tuple(map(float, content[key])) for key in ("slope", "offset", "share"))
        return cls(slope, offset, share, float(content["nobody"]))


def fit_owners(sample_SM: Floats, *, with_nobody: bool = False) -> OwnerMixture:
    """Fit the mixture by expectation-maximisation.

    Args:
        sample_SM: scores of some corpus rows, `[S, M]`, finite.
        with_nobody: whether a row may belong to no teacher.

    The start is each teacher's z-score: the best one owns the row. One teacher owns everything.
    """
    s = np.asarray(sample_SM, dtype=np.float64)
    rows, teachers = s.shape
    centre, spread = s.mean(axis=0), s.std(axis=0)
    alive = spread > _LEAST_SPREAD  # a teacher that says the same of every row tells nothing
    z = np.where(alive, (s - centre) / np.where(alive, spread, 1.0), 0.0)
    columns = teachers + int(with_nobody)
    owner = np.zeros((rows, columns))
    owner[np.arange(rows), z.argmax(axis=1)] = 1.0
    if with_nobody:  # at the start, the rows whose best score is below what is usual
        lowest = z.max(axis=1) < np.quantile(z.max(axis=1), 1.0 / (columns + 1))
        owner[lowest] = 0.0
        owner[lowest, -1] = 1.0
    before = -np.inf
    for _ in range(_STEPS):
        share, high, low, variance = _maximise(z, owner)
        slope = np.where(alive, np.maximum(high - low, 0.0) / variance, 0.0)
        odds = np.log(share[:teachers]) + slope * (z - (high + low) / 2)
        if with_nobody:
            odds = np.concatenate([odds, np.full((rows, 1), np.log(share[-1]))], axis=1)
        total = logsumexp(odds, axis=1, keepdims=True)
        owner = np.exp(odds - total)
        # the likelihood but for the part that all owners share: every teacher's score as a stranger's
        strangers = -0.5 * ((z - low) ** 2 / variance + np.log(variance)).sum(axis=1)
        found = float((total[:, 0] + strangers).mean())
        if abs(found - before) < _SETTLED:
            break
        before = found
    offset = np.log(share[:teachers]) - slope * (high + low) / 2
    # back from z-scores to the scores' own scale
    scale = np.where(alive, spread, 1.0)
    return OwnerMixture(
        tuple((slope / scale).tolist()),
        tuple((offset - slope * centre / scale).tolist()),
        tuple(share[:teachers].tolist()),
        float(share[-1]) if with_nobody else 0.0,
    )


def _maximise(
    z_SM: NDArray[np.float64], owner: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Shares `[M]` (`[M + 1]` with nobody), means as owner and as stranger, common variances, each `[M]`."""
    rows, teachers = z_SM.shape
    share = (owner.sum(axis=0) + _PRIOR_ROWS) / (rows + _PRIOR_ROWS * owner.shape[1])
    own = owner[:, :teachers]
    weight, rest = own.sum(axis=0) + 1e-9, (1.0 - own).sum(axis=0) + 1e-9
    high = (own * z_SM).sum(axis=0) / weight
    low = ((1.0 - own) * z_SM).sum(axis=0) / rest
    square = (own * (z_SM - high) ** 2).sum(axis=0) + ((1.0 - own) * (z_SM - low) ** 2).sum(axis=0)
    return share, high, low, np.maximum(square / rows, 1e-4)
