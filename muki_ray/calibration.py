"""How sure the student should be, sought without labels: one temperature for all of its logits.

A student that learned its rows by heart is surer than its teachers were; one that stopped early, or whose targets were
mixed, is less sure. The temperature is that at which its predictions of rows that it was not trained on come closest to
what is expected of these rows (least KL). It changes no top label. This is temperature scaling (Guo et al., 2017) with
the teachers' word in the place of labels, and as good as that word: teachers that boast teach a student to boast.

What is expected are the targets, but for how the teachers were mixed: there doubt is sharpened, and part of every target
is everybody's, for the sake of learning; here each teacher counts by how likely it knows the row.

Pure: arrays in, arrays out.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from muki_ray.uncertainty import Floats, softmax

# temperatures that are tried: beyond, something else is wrong
_LEAST, _MOST = 0.1, 10.0
# what is expected before any row is seen: the logarithm of the temperature is 0, give or take. Matters for a few rows only
_SPREAD = 0.5
_TINY = 1e-12


def fit_temperature(probs_NC: Floats, targets_NC: Floats) -> float:
    """The temperature at which the predictions come closest to the targets, in [0.1, 10]; above 1 is less sure.

    Args:
        probs_NC: the student's probabilities of rows that it was not trained on.
        targets_NC: what it should have said of them; rows sum to 1.

    Raises:
        ValueError: no rows.
    """
    if not len(probs_NC):
        raise ValueError("a temperature needs rows to be fitted to, got none")
    logs, targets = _logs(probs_NC), np.asarray(targets_NC, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        said = log_softmax(logs / np.exp(log_temperature), axis=1)
        return 0.5 * (log_temperature / _SPREAD) ** 2 - float((targets * said).sum())

    found = minimize_scalar(loss, bounds=(np.log(_LEAST), np.log(_MOST)), method="bounded")
    return float(np.exp(found.x))


def expected_labels(
    targets_NC: Floats, mixed_NM: Floats, believed_NM: Floats, index: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Targets mixed anew: each teacher's part counts as much as it is believed. `[N, C]`, rows sum to 1.

    Exact where no two teachers share a label; of one that they share the parts cannot be told apart, it counts by what
    they are believed together. A teacher that a target leaves out (hard integration, nothing smoothed) has no part in it to
    bring back: there what is expected is what the target says.

    Args:
        mixed_NM: the teachers' weights in the targets; rows sum to 1.
        believed_NM: those that they should have had; rows sum to 1.
        index: per teacher, places of its labels in the union.
    """
    mixed_NC, believed_NC = np.zeros(np.shape(targets_NC)), np.zeros(np.shape(targets_NC))
    for m, places in enumerate(index):
        mine = np.unique(places)
        mixed_NC[:, mine] += np.asarray(mixed_NM)[:, m : m + 1]
        believed_NC[:, mine] += np.asarray(believed_NM)[:, m : m + 1]
    found = np.asarray(targets_NC, dtype=np.float64) * believed_NC / np.clip(mixed_NC, _TINY, None)
    return np.asarray(found / np.clip(found.sum(axis=1, keepdims=True), _TINY, None))


def tempered(probs_NC: Floats, temperature: float) -> NDArray[np.float64]:
    """The same predictions at another temperature, `[N, C]`; the order of labels stays."""
    return softmax(_logs(probs_NC), temperature)


def _logs(probs_NC: Floats) -> NDArray[np.float64]:
    return np.asarray(np.log(np.clip(np.asarray(probs_NC, dtype=np.float64), _TINY, None)))
