"""Where co-training begins: log odds of a row's owner from scores alone.

By the method's score as it is, one scale for all teachers: `s / (0.6 sd)`. Or by ranks, where teachers speak on scales
of their own: among the corpus' rows, those that a teacher is most certain of are its own, as many as its share. A share
of an even one would do wherever teachers own alike much, and do harm elsewhere; so shares must be given.

Pure: arrays in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, M teachers, X scores of a row, Q knots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muki_ray.standardisation import Quantile, fit
from muki_ray.uncertainty import Floats

# temperature, in standard deviations of the scores
_TEMPERATURE = 0.6
_LEAST_SPREAD = 1e-9
# no rank and no share is nearer to 0 or 1
_LEAST_RANK, _LEAST_SHARE = 1e-3, 0.02


class Start(Protocol):
    """Log odds of a row's owner."""

    def __call__(self, scores_NM: Floats, views_NX: Floats) -> NDArray[np.float64]:
        """`[N, M]`, up to a constant per row."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that it is; `start_of` gives back an equal object."""


@dataclass(frozen=True)
class ByScore:
    """The method's score over the spread of all teachers' scores together."""

    spread: float

    def __call__(self, scores_NM: Floats, views_NX: Floats) -> NDArray[np.float64]:
        """Reads the scores only."""
        if self.spread < _LEAST_SPREAD:
            return np.zeros(np.shape(scores_NM))
        return np.asarray(scores_NM, dtype=np.float64) / (_TEMPERATURE * self.spread)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """One number."""
        return {"spread": np.array(self.spread)}


@dataclass(frozen=True)
class ByRank:
    """`logit(rank) - logit(1 - share)`: 0 where as many rows lie above as the teacher owns."""

    ranks: Quantile
    share_M: NDArray[np.float64]

    def __call__(self, scores_NM: Floats, views_NX: Floats) -> NDArray[np.float64]:
        """Reads the first M columns of the view only: the teachers' certainty."""
        ranks_NM = self.ranks(np.asarray(views_NX)[:, : len(self.share_M)])
        ranks_NM = np.clip(ranks_NM, _LEAST_RANK, 1 - _LEAST_RANK)
        return np.asarray(_logit(ranks_NM) + _logit(self.share_M))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Quantiles of the certainties, and the shares."""
        return {"rank_knots_MQ": np.array(self.ranks.knots_MQ), "rank_share_M": self.share_M}


def by_score(scores_SM: Floats) -> Start:
    """From a sample of the method's scores."""
    return ByScore(float(np.std(scores_SM)))


def by_rank(certainty_SM: Floats, share_M: Floats) -> Start:
    """From a sample of the teachers' certainties, and the share of the rows that each teacher owns."""
    found = fit("quantile", certainty_SM)
    assert isinstance(found, Quantile)
    return ByRank(found, np.clip(share_M, _LEAST_SHARE, 1 - _LEAST_SHARE))


def start_of(arrays: Mapping[str, NDArray[Any]]) -> Start:
    """The object whose `arrays` these are.

    Raises:
        KeyError: they are none's.
    """
    if "rank_share_M" in arrays:
        knots_MQ = arrays["rank_knots_MQ"].tolist()
        return ByRank(Quantile(tuple(map(tuple, knots_MQ))), arrays["rank_share_M"])
    return ByScore(float(arrays["spread"]))


def _logit(p: Floats) -> NDArray[np.float64]:
    return np.asarray(np.log(p) - np.log1p(-p))
