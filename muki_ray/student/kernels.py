"""The gradient of an embedding, which Torch makes slowly on a CPU. Knows Torch only.

Shapes: n rows that were read, V vocabulary, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function


class EmbeddingGradient:
    """The gradient of an embedding `[V, H]`, kept between steps: only rows that were read are written and cleared.

    Torch makes a dense one anew in every step, which for a large vocabulary costs more than a layer.

    Attributes:
        whole: whether something else adds to it too, anywhere: then all of it is cleared.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight
        self.rows: list[torch.Tensor] = []
        self.whole = False
        weight.grad = torch.zeros_like(weight)

    def clear(self) -> None:
        """Back to zero."""
        if self.weight.grad is None:  # somebody took it away
            self.weight.grad = torch.zeros_like(self.weight)
        if self.whole:
            self.weight.grad.zero_()
        for rows in self.rows if not self.whole else ():
            self.weight.grad.index_fill_(0, rows, 0.0)
        self.rows, self.whole = [], False

    def lookup(self, weight: torch.Tensor, ids: torch.Tensor, padding: int = -1) -> torch.Tensor:
        """Rows of the embedding, `[..., H]`; the row `padding` gets no gradient."""
        found: torch.Tensor = _Lookup.apply(weight, ids, padding, self)
        return found

    def add(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Add `values` `[n, H]` to `rows` `[n]`."""
        assert self.weight.grad is not None
        self.weight.grad.index_add_(0, rows, values.to(self.weight.dtype))
        self.rows.append(rows)


class _Lookup(Function):
    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int, gradient: EmbeddingGradient
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.gradient = padding, gradient
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        rows = ctx.saved_tensors[0].flatten()
        values = gradient.flatten(0, -2)
        if ctx.padding >= 0:
            values = values * (rows != ctx.padding)[:, None]
        ctx.gradient.add(rows, values)
        return None, None, None, None
