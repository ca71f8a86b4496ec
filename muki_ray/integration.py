"""Integration: teachers' predictions and scores become one target over the union, and a weight.

Pure functions on arrays, readable next to MUKI section 2.2.2. They know no files, no models, no Ray.

Shapes: N rows, M teachers, C union labels, C_m labels of teacher m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from muki_ray.uncertainty import Floats, softmax

# added to every margin, so that a tied row still counts for a little (the paper's released code)
MARGIN_FLOOR = 1e-6


@dataclass(frozen=True)
class Supervision:
    """What the student learns from: `targets` `[N, C]` (rows sum to 1), `weights` `[N]`, `teacher` `[N]`."""

    targets: NDArray[np.float64]
    weights: NDArray[np.float64]
    teacher: NDArray[np.int64]


def scatter(probs: Floats, index: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Place a teacher's probabilities in the union: `[N, C_m]` -> `[N, C]`, zero elsewhere.

    Labels of one teacher that share a place (merged labels) add up.
    """
    union = np.zeros((probs.shape[0], size), dtype=np.float64)
    # column by column: unlike assignment to `union[:, index]` this adds up, and it beats `np.add.at`
    for column, place in enumerate(index):
        union[:, place] += probs[:, column]
    return union


def teacher_weights(
    scores_NM: Floats, how: Literal["hard", "soft"], tau: float | None
) -> NDArray[np.float64]:
    """How much each teacher counts on each row, `[N, M]`, rows sum to 1.

    hard: the teacher with the best score, the first of equals. soft: `softmax(s / tau)` (MUKI section 2.2.2), which among many
    teachers leaves little to the best one; None for scores that are probabilities: as they are.
    """
    if how == "soft":
        return np.array(scores_NM, dtype=np.float64) if tau is None else softmax(scores_NM, tau)
    weights = np.zeros(scores_NM.shape, dtype=np.float64)
    weights[np.arange(len(scores_NM)), scores_NM.argmax(axis=1)] = 1.0
    return weights


def smoothed(weights_NM: Floats, smoothing: float) -> NDArray[np.float64]:
    """The same, but a share of `smoothing` spread evenly over the teachers. `[N, M]`."""
    return np.asarray((1 - smoothing) * weights_NM + smoothing / weights_NM.shape[1])


def margin(scores_NM: Floats) -> NDArray[np.float64]:
    """`s_(1) - s_(2) + 1e-6`, at most 1: small where two teachers look alike. One teacher: 1. `[N]`.

    Args:
        scores_NM: values in [0, 1]: scores, or the teachers' weights.
    """
    if scores_NM.shape[1] == 1:
        return np.ones(len(scores_NM), dtype=np.float64)
    top = np.partition(np.asarray(scores_NM, dtype=np.float64), -2, axis=1)
    return np.minimum(top[:, -1] - top[:, -2] + MARGIN_FLOOR, 1.0)


def integrate(
    logits: Sequence[Floats],
    index: Sequence[NDArray[np.int64]],
    size: int,
    scores_NM: Floats,
    *,
    how: Literal["hard", "soft"],
    tau: float | None,
    with_margin: bool,
    temperature: float,
    smoothing: float = 0.0,
    bounded: bool = True,
) -> Supervision:
    """Targets and weights of `N` rows.

    Args:
        logits: per teacher, deterministic logits `[N, C_m]` (the released procedure takes the target's
            probabilities from the deterministic pass, not from the Monte-Carlo mean).
        index: per teacher, places of its labels in the union, `[C_m]`.
        size: C.
        scores_NM: scores, higher is better.
        how, tau: see `teacher_weights`.
        with_margin: weight rows by `margin`; otherwise every row counts 1.
        temperature: of the teachers' softmax.
        smoothing: this share of a target is everybody's evenly, whatever the scores. What a teacher says of rows that
            are not its own still tells which of its labels are alike, and each label is seen on more rows.
        bounded: whether the scores lie in [0, 1], so that their gap is a weight; if not, the margin is the gap
            of the soft weights `softmax(s / tau)`.

    Raises:
        ValueError: as many scores as teachers are needed; a score or a logit is not finite (a NaN would win
            every `argmax`), so such rows have to be taken out before.
    """
    if scores_NM.shape[1] != len(logits):
        raise ValueError(
            f"scores of {scores_NM.shape[1]} teachers, but logits of {len(logits)}; give one each"
        )
    if not np.isfinite(scores_NM).all():
        raise ValueError("a score is not finite; quarantine such rows before integration")
    weights_NM = smoothed(teacher_weights(scores_NM, how, tau), smoothing)
    targets = np.zeros((len(scores_NM), size), dtype=np.float64)
    for m, (z, places) in enumerate(zip(logits, index, strict=True)):
        targets += weights_NM[:, m : m + 1] * scatter(softmax(z, temperature), places, size)
    if not np.isfinite(targets).all():
        raise ValueError("a logit is not finite; quarantine such rows before integration")
    weights = np.ones(len(scores_NM), dtype=np.float64)
    if with_margin:
        weights = margin(scores_NM if bounded else teacher_weights(scores_NM, "soft", tau))
    return Supervision(targets, weights, scores_NM.argmax(axis=1).astype(np.int64))


def concatenated_ensemble(
    logits: Sequence[Floats], index: Sequence[NDArray[np.int64]], size: int
) -> NDArray[np.float64]:
    """The usual baseline: softmax over all teachers' logits side by side, placed in the union. `[N, C]`."""
    together = softmax(np.concatenate([np.asarray(z, dtype=np.float64) for z in logits], axis=1))
    return scatter(together, np.concatenate(list(index)), size)
