"""A number per row that follows from its id alone: the same on every machine and in every order.

Shapes: N rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = 2**64 - 1  # any integer is a seed, negative ones too


def row_hash(row_ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """splitmix64 (Steele et al., 2014): uniform 64-bit values, `[N]`."""
    with np.errstate(over="ignore"):
        z = row_ids.astype(np.uint64) + np.uint64((seed * 2 + 1) & _MASK) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
