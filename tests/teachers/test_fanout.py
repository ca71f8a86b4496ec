"""The hooks by themselves, on layers made up for the purpose."""

from __future__ import annotations

import torch
from torch import nn

from muki_ray.teachers.fanout import fanned_out


class Adds(nn.Module):
    """A layer that adds what it is given to its hidden states."""

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        return hidden + bias + shared


def test_arguments_made_anew_for_each_layer_are_not_mixed_up() -> None:
    """Freed tensors give their place in memory to the next: the repetition must not be the former's."""
    layers = [Adds() for _ in range(30)]
    batched = frozenset({(0,), (1,)})
    hidden, shared = torch.zeros(2, 1), torch.zeros(2, 1)
    with fanned_out(layers, samples=2, rows=2, batched=batched, mask=None):
        for i, layer in enumerate(layers):
            hidden = layer(hidden, torch.tensor([[1.0], [100.0]]) * i, shared[:1])
    # 0 + 1 + ... + 29 = 435, for three samples of two rows
    assert hidden.flatten().tolist() == [435.0, 43500.0] * 3


def test_arguments_that_do_not_carry_the_batch_stay_as_they_are() -> None:
    layer = Adds()
    with fanned_out([layer], samples=1, rows=1, batched=frozenset({(0,)}), mask=torch.tensor([[1.0], [3.0]])):
        # one row: `bias` and `shared` have one entry as well, but not because of the batch
        out = layer(torch.tensor([[2.0]]), torch.tensor([[10.0]]), torch.tensor([[100.0]]))
    assert out.flatten().tolist() == [112.0, 116.0]
    assert layer(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1)).tolist() == [[3.0]], "no hook is left"
