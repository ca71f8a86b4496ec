"""What a report says about the whole corpus, counted while it streams by: histograms, never raw rows.

Pure: knows arrays, no files, no Ray. Counts and sums are whole numbers, so adding up is exact: the result
is the same to the last bit whatever the order of the shards and the shape of the cluster.

Shapes: N rows of one update, M teachers, B bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muki_ray.errors import StoreError
from muki_ray.uncertainty import Floats

Counts = NDArray[np.int64]

BINS = 50
EDGES: NDArray[np.float64] = np.linspace(0.0, 1.0, BINS + 1)
# sums are kept in whole units of 2^-32: exact to add, and fine enough for the smallest margins (1e-6)
_UNIT = 2.0**-32
# how far a value may leave [0, 1] by rounding
_ROUNDING = 1e-6


def bin_counts(values_N: Floats) -> Counts:
    """Values in [0, 1] per bin, `[B]`; bins are closed below, the last also above.

    Raises:
        ValueError: a value is NaN or outside [0, 1].
    """
    values_N = _checked(values_N)
    places_N = np.searchsorted(EDGES[1:-1], values_N, side="right")
    return np.bincount(places_N, minlength=BINS).astype(np.int64)


def owner_counts(scores_NM: Floats, owner_N: Counts) -> tuple[Counts, Counts]:
    """Each teacher's scores on rows that it should win, and on rows that another should win: two `[M, B]`.

    Rows with no known owner (-1) are in neither.
    """
    known_N = owner_N >= 0
    right_MB = [bin_counts(scores_N[owner_N == m]) for m, scores_N in enumerate(scores_NM.T)]
    wrong_MB = [bin_counts(scores_N[known_N & (owner_N != m)]) for m, scores_N in enumerate(scores_NM.T)]
    return np.stack(right_MB), np.stack(wrong_MB)


@dataclass(eq=False)
class CorpusStatistics:
    """Scores, margins and winners of all corpus rows seen so far.

    Attributes:
        scores_MB: rows per teacher and score bin.
        margin_B: rows per margin bin.
        won_M: rows that each teacher won (the first of equal scores).
        score_units_M, margin_units: sums, in units of 2^-32; read `score_sum_M` and `margin_sum`.
        rows: rows seen.
    """

    scores_MB: Counts
    margin_B: Counts
    won_M: Counts
    score_units_M: tuple[int, ...]
    margin_units: int = 0
    rows: int = 0

    @classmethod
    def empty(cls, teachers: int) -> CorpusStatistics:
        """No row yet."""
        if teachers < 1:
            raise ValueError(f"statistics need at least 1 teacher, got {teachers}")
        counts = np.zeros((teachers, BINS), dtype=np.int64)
        return cls(counts, np.zeros(BINS, np.int64), np.zeros(teachers, np.int64), (0,) * teachers)

    @property
    def teachers(self) -> int:
        """M."""
        return len(self.won_M)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, `[B + 1]`."""
        return EDGES

    @property
    def score_sum_M(self) -> NDArray[np.float64]:
        """Sum of each teacher's scores."""
        return np.array(self.score_units_M, dtype=np.float64) * _UNIT

    @property
    def margin_sum(self) -> float:
        """Sum of the margins."""
        return self.margin_units * _UNIT

    @property
    def margin_mean(self) -> float | None:
        """Mean margin; None before the first row."""
        return self.margin_sum / self.rows if self.rows else None

    def update(self, scores_NM: Floats, margins_N: Floats) -> None:
        """Count some rows, in place.

        Raises:
            ValueError: shapes that disagree, or values that are NaN or outside [0, 1].
        """
        scores_NM, margins_N = _checked(scores_NM), _checked(margins_N)
        if margins_N.ndim != 1 or scores_NM.shape != (len(margins_N), self.teachers):
            raise ValueError(
                f"scores {scores_NM.shape} and margins {margins_N.shape} must be [N, {self.teachers}] and [N]"
            )
        self.scores_MB = self.scores_MB + np.stack([bin_counts(scores_N) for scores_N in scores_NM.T])
        self.margin_B = self.margin_B + bin_counts(margins_N)
        self.won_M = self.won_M + np.bincount(scores_NM.argmax(axis=1), minlength=self.teachers)
        self.score_units_M = tuple(a + b for a, b in zip(self.score_units_M, _units(scores_NM), strict=True))
        self.margin_units += _units(margins_N[:, None])[0]
        self.rows += len(margins_N)

    def merge(self, other: CorpusStatistics) -> CorpusStatistics:
        """Both together, as a new object; associative and commutative.

        Raises:
            ValueError: the other counts another number of teachers.
        """
        if other.teachers != self.teachers:
            raise ValueError(f"cannot merge statistics of {self.teachers} and of {other.teachers} teachers")
        return CorpusStatistics(
            self.scores_MB + other.scores_MB,
            self.margin_B + other.margin_B,
            self.won_M + other.won_M,
            tuple(a + b for a, b in zip(self.score_units_M, other.score_units_M, strict=True)),
            self.margin_units + other.margin_units,
            self.rows + other.rows,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CorpusStatistics) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        """A plain dict that JSON can hold; `from_json` gives back an equal object."""
        return {
            "bins": BINS,
            "scores": self.scores_MB.tolist(),
            "margin": self.margin_B.tolist(),
            "won": self.won_M.tolist(),
            "score_units": list(self.score_units_M),
            "margin_units": self.margin_units,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CorpusStatistics:
        """The object that `to_json` wrote.

        Raises:
            StoreError: the content is something else, or its counts do not add up to its rows.
        """
        try:
            statistics = cls(
                np.array(content["scores"], dtype=np.int64),
                np.array(content["margin"], dtype=np.int64),
                np.array(content["won"], dtype=np.int64),
                tuple(int(units) for units in content["score_units"]),
                int(content["margin_units"]),
                int(content["rows"]),
            )
            teachers = len(statistics.won_M)
            shapes = (statistics.scores_MB.shape, statistics.margin_B.shape, len(statistics.score_units_M))
            whole = content["bins"] == BINS and shapes == ((teachers, BINS), (BINS,), teachers)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(
                f"corpus statistics cannot be read ({error!r}); delete the file and run again"
            ) from error
        totals = {int(total) for total in statistics.scores_MB.sum(axis=-1)} if whole else set()
        totals |= {int(statistics.margin_B.sum()), int(statistics.won_M.sum())}
        if not whole or totals != {statistics.rows}:
            raise StoreError(
                f"corpus statistics do not add up to {statistics.rows} rows; delete the file and run again"
            )
        return statistics


def _units(values_NM: NDArray[np.float64]) -> list[int]:
    """Column sums in whole units, as Python integers, which do not overflow."""
    units: list[int] = np.rint(values_NM / _UNIT).astype(np.int64).sum(axis=0).tolist()
    return units


def _checked(values: Floats) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    outside = ~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))  # NaN is outside
    if outside.any():
        raise ValueError(f"scores and margins must lie in [0, 1], got {values[outside][0]}")
    return np.clip(values, 0.0, 1.0)
