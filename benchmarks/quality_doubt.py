"""Does the student know when it does not know? Figures about its top probability.

Pure: arrays in, numbers out.

Shapes: N test rows, O rows that are about no label, C union labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from muki_ray.evaluation import predictions

_COVERAGE = 0.95


def of_doubt(
    probs_NC: NDArray[Any], truth_N: NDArray[np.int64], outside_OC: NDArray[Any]
) -> dict[str, float]:
    """How well the top probability tells rows of the test from rows that are about no label.

    Returns:
        outside_auroc: that a row of the test has a higher top probability than one from outside.
        accuracy_at_95: accuracy on the 95 % of the test's rows that the student is surest of.
        outside_answered: share of the rows from outside that it is as sure of.
    """
    sure_N, sure_O = np.asarray(probs_NC).max(axis=1), np.asarray(outside_OC).max(axis=1)
    least = np.quantile(sure_N, 1 - _COVERAGE, method="higher")
    answered_N = sure_N >= least
    right_N = predictions(probs_NC) == truth_N
    inside = np.concatenate([np.ones(len(sure_N)), np.zeros(len(sure_O))])
    return {
        "outside_auroc": float(roc_auc_score(inside, np.concatenate([sure_N, sure_O]))),
        "accuracy_at_95": float(right_N[answered_N].mean()),
        "outside_answered": float((sure_O >= least).mean()),
    }
