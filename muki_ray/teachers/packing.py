"""Weights laid out once for the CPU's matrix kernels, instead of at every call, with the bias and GELU in the kernel.

These are the kernels that Torch's own compiler emits. They are not a public interface, so what is missing here is
asked for (`available`), and the plain operation is the same answer to rounding.

Shapes: `[..., I]` in, `[..., O]` out.
"""

from __future__ import annotations

from functools import cache

import torch

# rows that the layout is made for; others work, too
_TYPICAL_ROWS = 1024
# what the kernels gain lies in low precision: in float32 they are what Torch calls anyway
_TYPES = (torch.bfloat16,)


@cache
def available() -> bool:
    """Whether this build of Torch has the kernels, and they answer."""
    try:
        ones = torch.ones(4, 4, dtype=torch.bfloat16)
        got = linear(ones, pack(ones), ones[0], "gelu")
        return bool(torch.isfinite(got).all()) and got.shape == (4, 4)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def fits(weight: torch.Tensor) -> bool:
    """Whether a weight gains from being packed."""
    return weight.device.type == "cpu" and weight.dtype in _TYPES and weight.dim() == 2 and available()


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A weight `[O, I]` in the kernels' own layout, an opaque tensor."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
    return packed


def linear(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """`x @ weight.T + bias`, then nothing (`none`) or the exact `gelu`; sums in float32, rounded once."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return result
