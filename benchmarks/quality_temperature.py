"""How sure the student should be, sought without labels: one temperature for all its logits.

A candidate for the product, measured here first: it is fitted either to the targets or to what the evidence says of a
row's label when it is taken as probabilities throughout,

    q = sum_m P(teacher m owns the row) * p_m

with the teachers' shares as integration believes them, not sharpened, and `p_m` the mean of teacher m's Monte-Carlo
samples (of its one pass where it has none). The temperature is that at which the student's predictions of held-out rows
tell most of either: the cross-entropy is least. It changes no top label. The idea is Guo et al.'s (2017) temperature
scaling, with these in the place of labels; it is as good as they are.

Pure: arrays in, arrays out.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from muki_ray.config_method import MukiMethod
from muki_ray.integration import scatter, teacher_weights
from muki_ray.uncertainty import Floats, TeacherEvidence, softmax

# temperatures that are tried: beyond, something else is wrong
_LEAST, _MOST = 0.1, 10.0
_TINY = 1e-12


def believed(method: MukiMethod, scores_NM: Floats) -> NDArray[np.float64]:
    """Probability that each teacher owns the row, `[N, M]`: co-training's beliefs, else the weights of integration."""
    if method.cotraining:
        return np.asarray(scores_NM, dtype=np.float64)
    return teacher_weights(scores_NM, "soft", method.tau)


def expected_labels(
    share_NM: Floats, evidence: Sequence[TeacherEvidence], index: Sequence[NDArray[np.int64]], size: int
) -> NDArray[np.float64]:
    """What the teachers say of each row's label, `[N, C]`, rows sum to 1.

    Args:
        share_NM: probability that each teacher owns the row; rows sum to 1.
        index: per teacher, places of its labels in the union.
        size: C.
    """
    found = np.zeros((len(share_NM), size))
    for m, (one, places) in enumerate(zip(evidence, index, strict=True)):
        probs = softmax(one.logits) if one.mc_probs is None else np.asarray(one.mc_probs, dtype=np.float64)
        found += np.asarray(share_NM, dtype=np.float64)[:, m : m + 1] * scatter(probs, places, size)
    return found


def fit_temperature(probs_NC: Floats, expected_NC: Floats) -> float:
    """The temperature at which the predictions tell most of what is expected, in [0.1, 10]; above 1 is less sure.

    Args:
        probs_NC: the student's probabilities of rows that it was not trained on.
        expected_NC: `expected_labels` of the same rows.

    Raises:
        ValueError: no rows.
    """
    if not len(probs_NC):
        raise ValueError("a temperature needs rows to be fitted to, got none")
    logs = np.log(np.clip(np.asarray(probs_NC, dtype=np.float64), _TINY, None))

    def loss(log_temperature: float) -> float:
        return -float((expected_NC * log_softmax(logs / np.exp(log_temperature), axis=1)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded")
    return float(np.exp(found.x))


def tempered(probs_NC: Floats, temperature: float) -> NDArray[np.float64]:
    """The same predictions at another temperature, `[N, C]`; the order of labels stays."""
    return softmax(np.log(np.clip(np.asarray(probs_NC, dtype=np.float64), _TINY, None)), temperature)
