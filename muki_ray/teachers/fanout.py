"""Hooks that run K+1 samples of a batch as one: masks at the sites, rows repeated at the first stochastic layer.

Knows Torch modules and hooks; draws no mask, decides nothing.

Samples lie sample-major: row b of sample k is row k*B + b. Shapes: B rows of a batch, K samples, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from muki_ray.teachers.sites import Key, Site


@contextmanager
def masked(sites: Sequence[Site], masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Multiply each site's output by its masks while the context lasts.

    Args:
        masks: per site `[K+1, H]`.
    """
    with _removing([site.module.register_forward_hook(_multiply(masks[site.name])) for site in sites]):
        yield


@contextmanager
def fanned_out(
    layers: Sequence[nn.Module], samples: int, rows: int, batched: frozenset[Key], mask: torch.Tensor | None
) -> Iterator[None]:
    """Repeat a batch of B rows K+1 times where it enters the first of these layers.

    Args:
        layers: from the first stochastic one to the last; arguments other than the hidden states come to each
            of them anew with B rows.
        samples: K.
        rows: B.
        batched: which arguments carry the batch.
        mask: `[K+1, H]`, of the site that feeds the first of these layers; None where that is not stochastic.
    """
    repeated = _Repeated(samples + 1)
    hooks = [_FanOut(repeated, rows, batched, mask if i == 0 else None) for i in range(len(layers))]
    handles = [
        layer.register_forward_pre_hook(hook, with_kwargs=True)
        for layer, hook in zip(layers, hooks, strict=True)
    ]
    with _removing(handles):
        yield


@contextmanager
def _removing(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiply(mask: torch.Tensor) -> Any:
    def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return _apply(output, mask)

    return hook


def _apply(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Multiply `[(K+1)*B, ..., H]`, sample-major, by `[K+1, H]`."""
    by_sample = hidden.unflatten(0, (mask.shape[0], -1))
    ones = [1] * (hidden.dim() - 1)
    return (by_sample * mask.view(mask.shape[0], *ones, -1)).flatten(0, 1)


class _Repeated:
    """Tensors repeated so far: the attention mask is one tensor for all layers, and is repeated once."""

    def __init__(self, times: int) -> None:
        self.times = times
        # the original is kept beside its repetition: were it freed, another tensor could take its id
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        if id(value) not in self.seen:
            self.seen[id(value)] = value, value.repeat(self.times, *[1] * (value.dim() - 1))
        return self.seen[id(value)][1]


class _FanOut:
    """Layer pre-hook: every batched tensor that still has B rows becomes (K+1)*B rows."""

    def __init__(
        self, repeated: _Repeated, rows: int, batched: frozenset[Key], mask: torch.Tensor | None
    ) -> None:
        self.repeated, self.rows, self.batched, self.mask = repeated, rows, batched, mask

    def _repeat(self, key: Key, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._repeat((*key, i), item) for i, item in enumerate(value))
        if key in self.batched and isinstance(value, torch.Tensor) and value.shape[0] == self.rows:
            return self.repeated(value)
        return value

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(self._repeat((i,), a) for i, a in enumerate(args))
        kwargs = {k: self._repeat((k,), v) for k, v in kwargs.items()}
        if self.mask is not None:
            if args:
                args = (_apply(args[0], self.mask), *args[1:])
            else:
                kwargs["hidden_states"] = _apply(kwargs["hidden_states"], self.mask)
        return args, kwargs
