"""Masks by forward hooks: any classifier, unmodified, at the price of the whole network for every sample.

What the engine falls back to for a model that cannot be captured, and what it compares a captured one with. Knows
Torch modules and hooks; draws no mask.

Samples lie sample-major: row b of sample g is row g*B + b. Shapes: B rows of a batch, T tokens, G samples, H hidden
size, C_m labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from muki_ray.teachers import kernels
from muki_ray.teachers.layers import LayerNumbers

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class HookSite:
    """One call of a dropout module on hidden states; named as `sites.Site` names it."""

    name: str
    module: nn.Dropout
    call: int
    rate: float
    layer: int
    width: int


def watch_sites(
    model: nn.Module, depth: int | None, rate: float | None, probe: Inputs
) -> tuple[list[HookSite], bool]:
    """Watch one forward of a padded batch: sites in the order they run, and whether the layers are known.

    Hidden states are what is shaped `[B, T, H]` or `[B, H]`. Dropout that is a function instead of a module is not
    seen.

    Args:
        probe: at least two rows, so that no other size is mistaken for theirs.
    """
    rows, tokens = probe["input_ids"].shape
    calls: list[tuple[str, str]] = []
    seen: list[tuple[str, nn.Dropout, int, int, list[tuple[str, str]]]] = []
    stack: list[tuple[str, str]] = []
    counts: dict[str, int] = {}
    handles = []

    def enter(path: str) -> Any:
        def hook(*_: Any) -> None:
            count = counts[path] = counts.get(path, -1) + 1
            stack.append((path, f"{path}@{count}"))
            calls.append(stack[-1])

        return hook

    def leave(path: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            hidden = isinstance(output, torch.Tensor) and tuple(output.shape[:-1]) in (
                (rows, tokens),
                (rows,),
            )
            if isinstance(module, nn.Dropout) and hidden:
                seen.append((path, module, counts[path], output.shape[-1], list(stack)))
            stack.pop()

        return hook

    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave(path)))
    with _removing(handles), torch.inference_mode():
        model(**probe)
    numbers = LayerNumbers(calls, depth)
    sites: list[HookSite] = []
    first_layer = next((i for i, call in enumerate(calls) if numbers.of([call]) is not None), len(calls))
    entered = set(calls[first_layer:])
    for path, module, call, width, inside in seen:
        chosen = module.p if rate is None else rate
        layer = numbers.of(inside)
        outside = int(depth or 0) if inside[-1] in entered else -1
        if chosen > 0:
            name = f"{path}@{call}" if call else path
            sites.append(HookSite(name, module, call, chosen, outside if layer is None else layer, width))
    return sites, numbers.known


@contextmanager
def masked(sites: Sequence[HookSite], masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Multiply each site's output by its masks in the one forward that is run meanwhile.

    Args:
        masks: per site `[G, H]`; sites without any are left alone.
    """
    by_call: dict[nn.Dropout, dict[int, torch.Tensor]] = {}
    for site in sites:
        if site.name in masks:
            by_call.setdefault(site.module, {})[site.call] = masks[site.name]
    with _removing([module.register_forward_hook(_multiply(calls)) for module, calls in by_call.items()]):
        yield


def _multiply(masks: dict[int, torch.Tensor]) -> Any:
    count = -1

    def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return kernels.masked(output, masks[count], True) if count in masks else output

    return hook


@contextmanager
def _removing(handles: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Repeated:
    """Samples of the unmodified model: its inputs, repeated.

    Args:
        masks: per site `[K+1, H]`.
    """

    widened = True

    def __init__(
        self, model: nn.Module, sites: Sequence[HookSite], masks: Mapping[str, torch.Tensor]
    ) -> None:
        self.model, self.sites, self.masks = model, sites, masks

    def start(self, inputs: Inputs) -> Inputs:
        """What the samples of a batch share."""
        return inputs

    def logits(self, shared: Inputs, first: int, last: int, rows: torch.Tensor | None) -> torch.Tensor:
        """Logits of samples `first` to `last` (exclusive) of some rows, `[G, B, C_m]`.

        Args:
            rows: positions, None for all.
        """
        chosen = {k: v if rows is None else v[rows] for k, v in shared.items()}
        repeated = {k: kernels.repeat(v, last - first) for k, v in chosen.items()}
        with masked(self.sites, {name: mask[first:last] for name, mask in self.masks.items()}):
            logits: torch.Tensor = self.model(**repeated).logits
        return logits.unflatten(0, (last - first, -1))
