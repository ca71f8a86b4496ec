"""Where dropout meets hidden states in a Hugging Face classifier, found by watching one forward.

Knows Torch modules and hooks; draws no mask, changes no model.

Shapes: B rows of a batch, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = Mapping[str, torch.Tensor]
# where a tensor stands among a layer's arguments: position or name, then the place in a tuple
Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Site:
    """One dropout module on hidden states. `layer` is -1 before the layers, their count after them."""

    name: str
    module: nn.Dropout
    layer: int
    width: int


@dataclass(frozen=True)
class Watched:
    """What one forward showed.

    Attributes:
        sites: dropout modules with a rate above 0 that see hidden states, in the order they ran.
        feeding: name of the site whose output enters the first layer as it is, if there is one.
        batched: which arguments of a layer carry one entry per row.
    """

    sites: tuple[Site, ...]
    feeding: str | None
    batched: frozenset[Key]


def encoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The stack of encoder or decoder layers, or None where it is not one plain list (shared layers, say)."""
    config = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return stacks[0] if len(stacks) == 1 else None


def find_sites(model: nn.Module, stack: nn.ModuleList | None, probe: Inputs) -> Watched:
    """Watch one forward of a padded batch.

    Hidden states are what is shaped `[B, T, H]` or `[B, H]`. Which layer arguments carry the batch is asked
    here, where B is known to be no other size, because a batch of one row could not tell its own tensors from
    those that broadcast.
    """
    rows, tokens = probe["input_ids"].shape
    layer_of = {module: i for i, layer in enumerate(stack or []) for module in layer.modules()}
    sites: dict[str, Site] = {}
    outputs: dict[str, torch.Tensor] = {}
    entered: list[torch.Tensor] = []
    batched: set[Key] = set()
    handles = []

    def watch(name: str, module: nn.Dropout) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            shape = tuple(output.shape)
            hidden = shape[:-1] in ((rows, tokens), (rows,))
            if hidden and module.p > 0:
                outside = len(stack or []) if entered else -1
                sites.setdefault(name, Site(name, module, layer_of.get(module, outside), shape[-1]))
                outputs[name] = output  # kept, so that no later tensor can take its place in memory

        return module.register_forward_hook(hook)

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = dict(layer_tensors(args, kwargs))
        entered.append(found.get((0,), found.get(("hidden_states",), torch.empty(0))))
        batched.update(key for key, value in found.items() if value.dim() and value.shape[0] == rows)

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            handles.append(watch(name, module))
    if stack is not None:
        handles.append(stack[0].register_forward_pre_hook(enter, with_kwargs=True))
    try:
        with torch.inference_mode():
            model(**probe)
    finally:
        for handle in handles:
            handle.remove()
    # in eval mode a dropout module passes its input on, so the tensor that enters is the one it returned
    feeding = [name for name, output in outputs.items() if any(output is tensor for tensor in entered[:1])]
    return Watched(tuple(sites.values()), feeding[-1] if feeding else None, frozenset(batched))


def layer_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Key, torch.Tensor]]:
    """Tensors among a layer's arguments, one level of tuples deep, each with where it stands."""
    items: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield (key,), value
        elif isinstance(value, tuple):
            yield from (((key, i), item) for i, item in enumerate(value) if isinstance(item, torch.Tensor))
