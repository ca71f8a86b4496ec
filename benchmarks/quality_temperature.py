"""Another thing to fit the student's temperature to than its targets, which the product takes (`muki_ray.calibration`).

What the evidence says of a row's label when it is taken as probabilities throughout,

    q = sum_m P(teacher m owns the row) * p_m

with the teachers' shares as integration believes them, not sharpened, and `p_m` the mean of teacher m's Monte-Carlo
samples (of its one pass where it has none).

Pure: arrays in, arrays out.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muki_ray.config_method import MukiMethod
from muki_ray.integration import scatter, teacher_weights
from muki_ray.uncertainty import Floats, TeacherEvidence, softmax


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
