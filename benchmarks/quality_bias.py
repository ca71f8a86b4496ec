"""The ensemble with a bias per teacher: as much of the corpus to each teacher as co-training believes that it owns.

The ensemble's weakness is that a teacher whose logits are larger takes rows that others know. One number per teacher,
added to all of its logits, mends what is the same for all rows. It is sought without labels: the cross-entropy from the
beliefs to the mass of the teachers' blocks is least, and each block's mean mass then is the teacher's mean belief.

Pure: arrays in, arrays out.

Shapes: N rows, M teachers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp

from muki_ray.uncertainty import Floats


def fit_bias(logits: Sequence[Floats], belief_NM: Floats) -> NDArray[np.float64]:
    """What to add to each teacher's logits, `[M]`; sums to 0.

    Args:
        logits: per teacher those of the corpus, `[N, C_m]`.
        belief_NM: probability that each teacher owns the row; rows sum to 1.

    Raises:
        ValueError: no rows.
    """
    belief_NM = np.asarray(belief_NM, dtype=np.float64)
    if not len(belief_NM):
        raise ValueError("a bias needs rows to be fitted to, got none")
    mass_NM = np.stack([logsumexp(np.asarray(one, dtype=np.float64), axis=1) for one in logits], axis=1)

    def loss(bias_M: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logs = log_softmax(mass_NM + bias_M, axis=1)
        return -float((belief_NM * logs).sum(axis=1).mean()), (np.exp(logs) - belief_NM).mean(axis=0)

    found = minimize(loss, np.zeros(len(logits)), jac=True, method="L-BFGS-B").x
    return np.asarray(found - found.mean())
