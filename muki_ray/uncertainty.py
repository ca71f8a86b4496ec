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
    """All that one teacher says about `N` rows; the `mc_*` parts are None when K = 0.

    Attributes:
        logits: of the deterministic pass, `[N, C_m]`.
        mc_probs: mean softmax over the K samples (MUKI eq. 5), `[N, C_m]`.
        mc_energy: mean over the samples of logsumexp of the logits, `[N]`.
        mc_expected_entropy: mean over the samples of the entropy of their softmax, nats, `[N]`.
        mc_variance: sum over labels of the variance of their probability over the samples, `[N]`.
    """

    logits: Floats
    mc_probs: Floats | None = None
    mc_energy: Floats | None = None
    mc_expected_entropy: Floats | None = None
    mc_variance: Floats | None = None


def score_entropy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1 - H(softmax(z)) / log C_m` of the single deterministic pass (MUKI without Monte-Carlo). `[N]`."""
    return normalised_certainty(softmax(evidence.logits))


def score_msp(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """Largest probability of the deterministic pass (Hendrycks and Gimpel, 2017). `[N]`, in [1 / C_m, 1]."""
    return np.asarray(softmax(evidence.logits).max(axis=1))


def score_max_logit(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """Largest logit of the deterministic pass (Hendrycks et al., 2022). `[N]`, unbounded."""
    return np.asarray(evidence.logits, dtype=np.float64).max(axis=1)


def score_energy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`logsumexp(z)`: minus the free energy of Liu et al. (2020) at temperature 1. `[N]`, unbounded."""
    z = np.asarray(evidence.logits, dtype=np.float64)
    top = z.max(axis=1)
    return np.asarray(top + np.log(np.exp(z - top[:, None]).sum(axis=1)))


def score_mc_entropy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1 - H(1/K sum_k p_k) / log C_m` (MUKI eq. 5-6, normalised). `[N]`."""
    return normalised_certainty(_sampled("mc_entropy", evidence.mc_probs))


def score_mc_energy(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1/K sum_k logsumexp(z_k)`. `[N]`, unbounded."""
    return _sampled("mc_energy", evidence.mc_energy)


def score_mutual_information(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """`1 - (H(1/K sum_k p_k) - 1/K sum_k H(p_k)) / log C_m`: how little the samples disagree. `[N]`.

    The information that the label holds about the weights (Houlsby et al., 2011), normalised.
    """
    mean = _sampled("mutual_information", evidence.mc_probs)
    expected = _sampled("mutual_information", evidence.mc_expected_entropy)
    return np.clip(normalised_certainty(mean) + expected / np.log(mean.shape[1]), 0.0, 1.0)


def score_mc_variance(evidence: TeacherEvidence) -> NDArray[np.float64]:
    """1 minus the variance of the probabilities over the samples, summed over the labels. `[N]`."""
    return np.clip(1.0 - _sampled("mc_variance", evidence.mc_variance), 0.0, 1.0)


def _sampled(name: str, part: Floats | None) -> NDArray[np.float64]:
    """A Monte-Carlo part of the evidence, which must be there."""
    if part is None:
        raise ValueError(f"{name} needs Monte-Carlo samples, the evidence has none; set samples to 2 or more")
    return np.asarray(part, dtype=np.float64)


SCORES: dict[str, Callable[[TeacherEvidence], NDArray[np.float64]]] = {
    "entropy": score_entropy,
    "msp": score_msp,
    "max_logit": score_max_logit,
    "energy": score_energy,
    "mc_entropy": score_mc_entropy,
    "mc_energy": score_mc_energy,
    "mutual_information": score_mutual_information,
    "mc_variance": score_mc_variance,
}
# scores that read Monte-Carlo samples
SAMPLED = frozenset({"mc_entropy", "mc_energy", "mutual_information", "mc_variance"})
# scores on the logits' own scale, which no two teachers need share; all others lie in [0, 1]
UNBOUNDED = frozenset({"max_logit", "energy", "mc_energy"})


def scores(name: str, evidence: list[TeacherEvidence]) -> NDArray[np.float64]:
    """Scores of all teachers, `[N, M]`."""
    return np.stack([SCORES[name](one) for one in evidence], axis=1)
