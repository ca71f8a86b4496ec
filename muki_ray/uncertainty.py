"""Scores: how capable a teacher is of a row, from what it said about it. Higher is better.

Pure functions on arrays; they know no files, no models, no Ray.

Shapes: N rows, M teachers, K Monte-Carlo samples, C_m labels of teacher m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax over the last axis, in float64. Logits `[..., C]` -> probabilities `[..., C]`."""
    z = np.asarray(logits, dtype=np.float64)
    # the maximum goes first: dividing by a tiny temperature may then overflow to -inf, never to inf - inf
    z = np.exp((z - z.max(axis=-1, keepdims=True)) / temperature)
    return np.asarray(z / z.sum(axis=-1, keepdims=True))


def entropy(probs: Floats) -> NDArray[np.float64]:
    """Shannon entropy in nats over the last axis; 0 log 0 = 0. Probabilities `[..., C]` -> `[...]`."""
    p = np.asarray(probs, dtype=np.float64)
    # log of the clipped value is finite and is multiplied by an exact 0
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=-1))


def normalised_certainty(probs: Floats) -> NDArray[np.float64]:
    """`1 - H(p) / log C_m`, in [0, 1]. Probabilities `[N, C_m]` -> `[N]`.

    MUKI eq. 6 gives the plain entropy; the released code divides by `log C_m`, without which teachers of
    different label counts are not on one scale.

    Raises:
        ValueError: fewer than two labels, where the normalisation is 0 / 0.
    """
    if probs.shape[-1] < 2:
        raise ValueError(
            f"entropy over {probs.shape[-1]} label(s) cannot be normalised; a teacher needs 2 or more"
        )
    return np.clip(1.0 - entropy(probs) / np.log(probs.shape[-1]), 0.0, 1.0)


@dataclass(frozen=True)
class TeacherEvidence:
    """All that one teacher says about `N` rows.

    Attributes:
        logits: of the deterministic pass, `[N, C_m]`.
        mc_probs: mean softmax over the K samples (MUKI eq. 5), `[N, C_m]`; None when K = 0.
    """

    logits: Floats
    mc_probs: Floats | None = None


def score_entropy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1 - H(softmax(z)) / log C_m` of the single deterministic pass (MUKI without Monte-Carlo). `[N]`."""
    return normalised_certainty(softmax(evidence.logits))


def score_mc_entropy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1 - H(1/K sum_k p_k) / log C_m` (MUKI eq. 5-6, normalised). `[N]`."""
    if evidence.mc_probs is None:
        raise ValueError(
            "mc_entropy needs Monte-Carlo samples, the evidence has none; set samples to 2 or more"
        )
    return normalised_certainty(evidence.mc_probs)


SCORES: dict[str, Callable[[TeacherEvidence], NDArray[np.float64]]] = {
    "entropy": score_entropy,
    "mc_entropy": score_mc_entropy,
}


def scores(name: str, evidence: list[TeacherEvidence]) -> NDArray[np.float64]:
    """Scores of all teachers, `[N, M]`."""
    return np.stack([SCORES[name](one) for one in evidence], axis=1)
