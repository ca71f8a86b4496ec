"""The kept gradient of an embedding is the one that Torch makes anew."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muki_ray.student.kernels import EmbeddingGradient


@pytest.mark.parametrize("padding", [-1, 0])
def test_the_kept_gradient_is_the_dense_one(padding: int) -> None:
    weight = nn.Parameter(torch.randn(11, 4))
    dense = weight.detach().clone().requires_grad_()
    kept = EmbeddingGradient(weight)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for _accumulated in range(2):
            ids = torch.randint(0, 11, (2, 5), generator=generator)
            values = torch.randn(2, 5, 4, generator=generator)
            mine = kept.lookup(weight, ids, padding)
            theirs = nn.functional.embedding(ids, dense, padding_idx=padding if padding >= 0 else None)
            assert torch.equal(mine, theirs)
            (mine * values).sum().backward()
            (theirs * values).sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, dense.grad)
        assert weight.grad.any()
        kept.clear()
        dense.grad = None
        assert not weight.grad.any()


def test_a_gradient_that_was_taken_away_comes_back() -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    kept = EmbeddingGradient(weight)
    weight.grad = None
    kept.clear()
    kept.lookup(weight, torch.tensor([[1]])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]
