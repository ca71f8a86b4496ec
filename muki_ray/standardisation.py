"""Standardisation: scores of unlike teachers brought to one scale, learned from the unlabeled corpus.

Two teachers of different size, label count or training speak on different scales; raw, the louder one wins. What is
learned here is a few numbers per teacher, from a sample of the corpus's scores. Pure: arrays in, arrays and plain
numbers out. Knows no files, no models, no Ray.

- `none`: as they are.
- `zscore`: minus the teacher's mean, over its standard deviation. Assumes that each teacher knows a like share of
  the corpus.
- `quantile`: the share of the sample that the score exceeds, in [0, 1]. The same assumption.
- `owner`: `OwnerMixture` (`ownership.py`): log odds that the teacher knows the row. Learns the shares too.

Shapes: N rows, M teachers, S rows of the sample, Q knots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from muki_ray.errors import StoreError
from muki_ray.ownership import OwnerMixture, fit_owners
from muki_ray.uncertainty import Floats

Kind = Literal["none", "zscore", "quantile", "owner"]
_KNOTS = 1025
# a teacher that says the same of every row has no scale; its scores become 0
_LEAST_SPREAD = 1e-9


class Standardisation(Protocol):
    """Fitted to a corpus; turns raw scores into comparable ones."""

    def __call__(self, scores_NM: Floats) -> NDArray[np.float64]:
        """Standardised scores `[N, M]`, higher is better."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `from_json` gives back an equal object."""


@dataclass(frozen=True)
class Raw:
    """`none`."""

    def __call__(self, scores_NM: Floats) -> NDArray[np.float64]:
        """The scores themselves."""
        return np.asarray(scores_NM, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Nothing was learned."""
        return {"kind": "none"}


@dataclass(frozen=True)
class ZScore:
    """`zscore`: `(s - mean_M) / sd_M`."""

    mean_M: tuple[float, ...]
    sd_M: tuple[float, ...]

    def __call__(self, scores_NM: Floats) -> NDArray[np.float64]:
        """Standard deviations above the teacher's mean."""
        sd_M = np.array(self.sd_M)
        centred = np.asarray(scores_NM, dtype=np.float64) - np.array(self.mean_M)
        return np.where(sd_M > _LEAST_SPREAD, centred / np.maximum(sd_M, _LEAST_SPREAD), 0.0)

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation per teacher."""
        return {"kind": "zscore", "mean": list(self.mean_M), "sd": list(self.sd_M)}


@dataclass(frozen=True)
class Quantile:
    """`quantile`: share of the sample below the score, interpolated between knots; the middle of a tie's shares."""

    knots_MQ: tuple[tuple[float, ...], ...]

    def __call__(self, scores_NM: Floats) -> NDArray[np.float64]:
        """Shares in [0, 1]."""
        scores_NM = np.asarray(scores_NM, dtype=np.float64)
        return np.stack(
            [share_below(scores_NM[:, m], np.array(knots)) for m, knots in enumerate(self.knots_MQ)], axis=1
        )

    def to_json(self) -> dict[str, Any]:
        """The knots: quantiles of the sample, per teacher."""
        return {"kind": "quantile", "knots": [list(knots) for knots in self.knots_MQ]}


def share_below(scores_N: Floats, knots_Q: Floats) -> NDArray[np.float64]:
    """Inverse of the quantile function that the knots draw. `[N]`"""
    places_Q = np.linspace(0.0, 1.0, len(knots_Q))
    values, first, counts = np.unique(knots_Q, return_index=True, return_counts=True)
    middle = (places_Q[first] + places_Q[first + counts - 1]) / 2
    return np.asarray(np.interp(scores_N, values, middle))


def fit(kind: Kind, sample_SM: Floats) -> Standardisation:
    """Learn a standardisation.

    Args:
        sample_SM: raw scores of some corpus rows, `[S, M]`, finite; not used for `none`.

    Raises:
        ValueError: an empty sample, or one that is not finite.
    """
    if kind == "none":
        return Raw()
    sample_SM = np.asarray(sample_SM, dtype=np.float64)
    if sample_SM.ndim != 2 or not sample_SM.size or not np.isfinite(sample_SM).all():
        raise ValueError(f"a sample of scores must be [S, M], S > 0, and finite; got {sample_SM.shape}")
    if kind == "zscore":
        return ZScore(tuple(sample_SM.mean(axis=0).tolist()), tuple(sample_SM.std(axis=0).tolist()))
    if kind == "quantile":
        knots_QM = np.quantile(sample_SM, np.linspace(0.0, 1.0, min(_KNOTS, len(sample_SM))), axis=0)
        return Quantile(tuple(tuple(knots_Q.tolist()) for knots_Q in knots_QM.T))
    return fit_owners(sample_SM)


def from_json(content: Mapping[str, Any]) -> Standardisation:
    """The object that `to_json` wrote.

    Raises:
        StoreError: the content is something else.
    """
    try:
        kind = content["kind"]
        if kind == "none":
            return Raw()
        if kind == "zscore":
            return ZScore(tuple(map(float, content["mean"])), tuple(map(float, content["sd"])))
        if kind == "quantile":
            return Quantile(tuple(tuple(map(float, knots)) for knots in content["knots"]))
        if kind == "owner":
            return OwnerMixture.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"a standardisation cannot be read ({error!r}); delete the supervision folder and run again"
        ) from error
    raise StoreError(f"unknown standardisation {kind!r}; delete the supervision folder and run again")
