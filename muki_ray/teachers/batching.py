"""Batches by token budget: rows of like length together, longest first, cut where padding costs least.

Pure: numbers in, numbers out. Longest first, so that the largest allocation comes first and is reused.

Few shapes: for every new one the library behind Torch's matrix products on a CPU builds kernels, milliseconds and about
a megabyte each, of which it keeps a thousand. So batches have few sizes (`SIZES`) and few widths (`padded_width`).

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# what a batch costs beside its tokens, as a share of the budget: starting its operations, and matrix products that
# are too small to run at full speed
_BATCH_COST = 1 / 16
# rows of a batch: steps of a third to a half
SIZES = np.array([1, 2, 3, *(size << shift for shift in range(1, 19) for size in (2, 3))], dtype=np.int64)


def padded_width(length: int) -> int:
    """Tokens that a batch is padded to, whose longest row has so many: up to 1/16 more, 1/48 at most places."""
    step = 1 << max(0, length.bit_length() - 5)
    return -(-length // step) * step


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut rows into batches of at most `budget` tokens, padding counted, so that their whole cost is least.

    The cost of a batch is its padded tokens and a constant; the best cut of the sorted rows into batches of `SIZES`
    rows is found exactly, by dynamic programming.

    Args:
        lengths: tokens of each row, `[N]`.
        budget: tokens of a padded batch (rows x width); a row longer than that stands alone.

    Returns:
        Row positions, every row once, longest rows first; ties keep the row order, so the same rows give
        the same batches wherever they run.
    """
    if budget < 1:
        raise ValueError(f"token budget must be at least 1, got {budget}")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    ordered = np.array([padded_width(max(1, lengths[row])) for row in order], dtype=np.int64)
    constant = max(1.0, budget * _BATCH_COST)
    # cheapest[i]: cost of the rows from i on; the first of them is the longest
    cheapest = np.zeros(len(order) + 1)
    end = np.zeros(len(order), dtype=np.int64)
    for i in range(len(order) - 1, -1, -1):
        most = min(len(order) - i, max(1, budget // int(ordered[i])))
        sizes = SIZES[: np.searchsorted(SIZES, most, side="right")]
        costs = constant + ordered[i] * sizes + cheapest[i + sizes]
        best = int(costs.argmin())
        cheapest[i], end[i] = costs[best], i + int(sizes[best])
    batches, i = [], 0
    while i < len(order):
        batches.append(order[i : end[i]])
        i = int(end[i])
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of a padded run's tokens that are padding, 0 to 1."""
    padded = sum(len(batch) * padded_width(max(lengths[row] for row in batch)) for batch in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0
