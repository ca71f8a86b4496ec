"""Masks that all rows share."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.teachers.masks import balanced_masks


@given(st.integers(1, 40), st.integers(1, 30), st.floats(0.01, 0.95), st.integers(0, 2**62))
def test_every_unit_is_dropped_equally_often(samples: int, width: int, rate: float, seed: int) -> None:
    masks = balanced_masks(samples, width, rate, seed)
    assert masks.shape == (samples, width)
    dropped = (masks == 0).sum(dim=0)
    assert dropped.min() >= math.floor(samples * rate)
    assert dropped.max() <= math.ceil(samples * rate)
    kept = masks[masks > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))


def test_each_value_is_dropped_with_the_rate() -> None:
    """Over seeds; the count is binomial, four standard deviations never miss at fixed seeds."""
    rate, seeds = 0.3, 2000
    dropped = sum((balanced_masks(5, 3, rate, seed) == 0).double() for seed in range(seeds)) / seeds
    assert isinstance(dropped, torch.Tensor)
    assert ((dropped - rate).abs() < 4 * (rate * (1 - rate) / seeds) ** 0.5).all()


def test_units_and_samples_are_drawn_apart() -> None:
    masks = balanced_masks(16, 400, 0.5, seed=1)
    assert len(masks.unique(dim=0)) == 16
    assert len(masks.unique(dim=1)[0]) > 350
    shares = (masks == 0).double().mean(dim=1)
    assert shares.std() > 0.005, "a sample may drop more units than another, as in classical dropout"


def test_the_seed_decides() -> None:
    assert torch.equal(balanced_masks(4, 8, 0.5, 3), balanced_masks(4, 8, 0.5, 3))
    assert not torch.equal(balanced_masks(4, 8, 0.5, 3), balanced_masks(4, 8, 0.5, 4))
