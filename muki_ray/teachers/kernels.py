"""The few operations that a program of samples needs beside the model's own, or does better.

Samples lie sample-major: row b of sample g is row g*B + b. A tensor of one sample (first dimension B) and one of all
samples (G*B) are told apart by the mask's G and never by their sizes, see each function.

Shapes: B rows of a batch, G samples, T tokens, H hidden size, D width of a head.
"""

from __future__ import annotations

import torch

# scores of one head, above which the fused kernel is as fast and needs less memory
_MOST_SCORES = 384 * 384


def repeat(value: torch.Tensor, samples: int) -> torch.Tensor:
    """`[B, ...]` for each of G samples, `[G*B, ...]`."""
    return value if samples == 1 else value.repeat(samples, *[1] * (value.dim() - 1))


def masked(value: torch.Tensor, mask: torch.Tensor, fanned: bool) -> torch.Tensor:
    """Multiply each sample by its mask, `[G*B, ..., H]`.

    Args:
        value: `[G*B, ..., H]` where `fanned`, else `[B, ..., H]`, the same for all samples.
        mask: `[G, H]`.
    """
    if mask.shape[0] == 1:
        return value * mask[0]
    by_sample, per_sample = _of_samples(value, mask, fanned)
    return (by_sample * per_sample).flatten(0, 1)


def masked_sum(
    value: torch.Tensor, mask: torch.Tensor, other: torch.Tensor, fanned: bool, other_fanned: bool
) -> torch.Tensor:
    """`masked(value, mask, fanned) + other` in one pass, `[G*B, ..., H]`."""
    if mask.shape[0] == 1:
        return torch.addcmul(other, value, mask[0])
    by_sample, per_sample = _of_samples(value, mask, fanned)
    others, _ = _of_samples(other, mask, other_fanned)
    return torch.addcmul(others, by_sample, per_sample).flatten(0, 1)


def _of_samples(value: torch.Tensor, mask: torch.Tensor, fanned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`[G or 1, B, ..., H]` and the mask as `[G, 1, ..., H]`."""
    samples, width = mask.shape
    by_sample = value.unflatten(0, (samples, -1)) if fanned else value[None]
    return by_sample, mask.view(samples, *[1] * (value.dim() - 1), width)


def additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor | None:
    """An attention mask as what is added to the scores of every head, `[B * heads, Tq, Tk]`; None where it hides nothing.

    Args:
        mask: true where a token may be looked at, or numbers to add; broadcasts to `[B, heads, Tq, Tk]`.
        query: `[B, heads, Tq, D]`, for its shape and type.
    """
    if mask.dtype == torch.bool:
        if bool(mask.all()):
            return None
        # not minus infinity: a padded token that sees nothing must not become NaN
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min / 2)
    rows, heads, queries = query.shape[:3]
    return (
        mask.to(query.dtype).expand(rows, heads, queries, mask.shape[-1]).reshape(-1, queries, mask.shape[-1])
    )


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """`softmax(scale * q k^T + mask) v`, `[B, heads, Tq, D]`, by whole matrix products.

    Torch's fused kernel for CPUs works in small blocks and is slower than this, up to some hundred tokens. The
    softmax is computed in float32.

    Args:
        query, key, value: `[B, heads, T, D]`.
        mask: see `additive`.
    """
    rows, heads, queries, width = query.shape
    keys = key.shape[2]
    if queries * keys > _MOST_SCORES:
        shaped = None if mask is None else mask.view(rows, heads, queries, keys)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, shaped, scale=scale)
    q, k = query.reshape(-1, queries, width), key.reshape(-1, keys, width)
    start, share = (q.new_empty(1, 1, 1), 0.0) if mask is None else (mask, 1.0)
    scores = torch.baddbmm(start, q, k.transpose(1, 2), beta=share, alpha=scale)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.bmm(weights, value.reshape(-1, keys, value.shape[-1])).view(rows, heads, queries, -1)


def token_of_each_row(value: torch.Tensor, axis: int, position: torch.Tensor) -> torch.Tensor:
    """Each row's own token along `axis`, which stays, with one entry.

    Args:
        value: first dimension rows, or a multiple of them that counts rows first, or 1 (the same for all).
        position: `[B]`.
    """
    if axis == 0 or value.shape[0] == 1:
        if axis == 0:
            raise ValueError("tokens along the first dimension have no rows")
        return value.index_select(axis, position).transpose(0, axis)
    of_each = position.repeat_interleave(value.shape[0] // position.shape[0])
    return value.take_along_dim(of_each.view(-1, *[1] * (value.dim() - 1)), dim=axis)
