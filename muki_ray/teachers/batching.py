"""Batches by token budget: rows of like length together, longest first, cut where padding costs least.

Pure: numbers in, numbers out. Longest first, so that the largest allocation comes first and is reused.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# what a batch costs beside its tokens, as a share of the budget: starting its operations, and matrix products that
# are too small to run at full speed
_BATCH_COST = 1 / 16


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut rows into batches of at most `budget` tokens, padding counted, so that their whole cost is least.

    The cost of a batch is its padded tokens and a constant; the best cut of the sorted rows is found exactly, by
    dynamic programming.

    Args:
        lengths: tokens of each row, `[N]`.
        budget: tokens of a padded batch (rows x longest); a row longer than that stands alone.

    Returns:
        Row positions, every row once, longest rows first; ties keep the row order, so the same rows give
        the same batches wherever they run.
    """
    if budget < 1:
        raise ValueError(f"token budget must be at least 1, got {budget}")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    ordered = np.array([max(1, lengths[row]) for row in order], dtype=np.int64)
    constant = max(1.0, budget * _BATCH_COST)
    # cheapest[i]: cost of the rows from i on; the first of them is the longest
    cheapest = np.zeros(len(order) + 1)
    end = np.zeros(len(order), dtype=np.int64)
    for i in range(len(order) - 1, -1, -1):
        most = min(len(order) - i, max(1, budget // int(ordered[i])))
        costs = constant + ordered[i] * np.arange(1, most + 1) + cheapest[i + 1 : i + most + 1]
        best = int(costs.argmin())
        cheapest[i], end[i] = costs[best], i + best + 1
    batches, i = [], 0
    while i < len(order):
        batches.append(order[i : end[i]])
        i = int(end[i])
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of a padded run's tokens that are padding, 0 to 1."""
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0
