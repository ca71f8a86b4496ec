"""Masks of Monte-Carlo dropout that all rows share, drawn so that few samples say much.

Pure: numbers in, tensors out. Drawn on the CPU: the same on every device.

Shapes: K samples, H hidden size.
"""

from __future__ import annotations

import torch


def balanced_masks(samples: int, width: int, rate: float, seed: int) -> torch.Tensor:
    """Inverted-dropout masks, `float32 [K, H]`: each value 0 with probability `rate`, else `1 / (1 - rate)`.

    Every unit is dropped in `K * rate` of the samples, rounded down or up at random, instead of in a binomial number
    of them. Each mask is still a mask of classical dropout, so the mean over the samples (MUKI eq. 5) has the
    same expectation; but masks that all rows share err for all rows alike, and balanced ones err much less.

    Args:
        rate: between 0 and 1.
        seed: what the masks follow from.
    """
    generator = torch.Generator().manual_seed(seed)
    # a unit's place among the samples, in random order, and one random shift of all its places
    place = torch.rand(samples, width, generator=generator, dtype=torch.float64).argsort(dim=0).argsort(dim=0)
    shift = torch.rand(width, generator=generator, dtype=torch.float64)
    dropped = (place + shift) / samples < rate
    return (~dropped).to(torch.float32) / (1.0 - rate)
