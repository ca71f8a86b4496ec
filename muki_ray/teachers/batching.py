"""Batches by token budget: rows of like length together, longest first.

Pure: numbers in, numbers out. Longest first, so that the largest allocation comes first and is reused.
"""

from __future__ import annotations

from collections.abc import Sequence


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut rows into batches of at most `budget` tokens, padding counted.

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
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if not batches or room == 0:
            batches.append([])
            room = max(1, budget // max(1, lengths[row]))
        batches[-1].append(row)
        room -= 1
    return batches


def padding_waste(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Share of a padded run's tokens that are padding, 0 to 1."""
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1.0 - sum(lengths) / padded if padded else 0.0
