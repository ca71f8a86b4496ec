"""Dropout and attention with dropout as a CPU does them fast: for students that learn and teachers under classical dropout.

Each is the same function of its inputs as Torch's own; only the random stream differs. Torch draws one double per
element for dropout, here 16 bits; its fused attention has no dropout on a CPU, and its backward in bfloat16 is slower
than the products that it consists of. On other devices they call Torch. Knows Torch only.

Shapes: B rows of a batch, A attention heads, T queries, S keys, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import Function

_LEVELS = 2**16  # dropout rates are met to 1 / 65,536


def dropout(x: torch.Tensor, rate: float, training: bool) -> torch.Tensor:
    """Inverted dropout; draws from Torch's default generator."""
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu" or rate >= 1.0:
        return nn.functional.dropout(x, rate)
    dropped: torch.Tensor = _Dropout.apply(x, rate)
    return dropped


def _kept(shape: torch.Size, rate: float, dtype: torch.dtype) -> tuple[torch.Tensor, float]:
    """A mask of zeros and ones, and what the ones have to be multiplied by."""
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[: shape.numel()].view(shape)  # uniform in [-32768, 32767]
    mask = torch.empty(shape, dtype=dtype)
    torch.ge(lanes, dropped - _LEVELS // 2, out=mask)
    return mask, _LEVELS / (_LEVELS - dropped)


class _Dropout(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rate: float) -> torch.Tensor:
        mask, ctx.scale = _kept(x.shape, rate, x.dtype)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    rate: float = 0.0,
    is_causal: bool = False,
    *,
    training: bool,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention with dropout on its probabilities, `[B, A, T, D]`.

    Args:
        query, key, value: `[B, A, T, D]`, `[B, A, S, D]` twice.
        mask: broadcasts to `[B, A, T, S]`: True where a query may look, or numbers to add. A query that may look
            nowhere gets a mean of the values where Torch gives 0: such a row is padding, which nobody reads.
        training: whether dropout is on; the other arguments are Torch's.
    """
    rate = rate if training else 0.0
    if query.device.type != "cpu" or is_causal or enable_gqa or query.dim() != 4 or rate >= 1.0:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, mask, rate, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attended: torch.Tensor = _Attention.apply(query, key, value, mask, rate, scale)
    return attended


class _Attention(Function):
    """Products in the inputs' type, softmax in float32. Batches of heads are flattened to one dimension."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        rate: float,
        scale: float,
    ) -> torch.Tensor:
        rows, heads, queries, _ = query.shape
        dtype = query.dtype
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        if mask is None:
            scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(scale)
        else:
            bias = _bias(mask, dtype).expand(rows, heads, queries, key.shape[2]).flatten(0, 1)
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).float()
        probs = scores.softmax(-1).to(dtype)
        kept, ctx.kept_scale = _kept(probs.shape, rate, dtype) if rate else (None, 1.0)
        dropped = probs if kept is None else (probs * kept).mul_(ctx.kept_scale)
        ctx.save_for_backward(q, k, v, probs, dropped, kept)
        ctx.scale, ctx.heads = scale, heads
        return torch.bmm(dropped, v).unflatten(0, (rows, heads))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, probs, dropped, kept = ctx.saved_tensors
        g = gradient.flatten(0, 1)
        of_value = torch.bmm(dropped.transpose(1, 2), g)
        of_probs = torch.bmm(g, v.transpose(1, 2))
        if kept is not None:
            of_probs = (of_probs * kept).mul_(ctx.kept_scale)
        of_scores = torch._softmax_backward_data(of_probs.float(), probs.float(), -1, torch.float32).to(
            q.dtype
        )
        of_query = torch.bmm(of_scores, k).mul_(ctx.scale)
        of_key = torch.bmm(of_scores.transpose(1, 2), q).mul_(ctx.scale)
        query, key, value = (t.unflatten(0, (-1, ctx.heads)) for t in (of_query, of_key, of_value))
        return query, key, value, None, None, None


def _bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What to add to the scores. Finite, so that a query that may look nowhere does not become NaN."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
