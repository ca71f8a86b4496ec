"""Where dropout meets hidden states in a captured classifier.

A site is one place in the forward pass: a dropout that is called twice is two sites, each with masks of its own, as
classical dropout draws anew at each. Knows graphs; draws no mask.

Shapes: B rows of a batch, T tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from muki_ray.teachers.capture import Captured, module_path, op_name, sizes
from muki_ray.teachers.layers import LayerNumbers

_DROPOUT = torch.ops.aten.dropout.default


@dataclass(frozen=True)
class Site:
    """Dropout on hidden states, `[B, T, H]` or `[B, H]`.

    Attributes:
        name: the dropout module's path, with `@1`, `@2` for its second and third call.
        rate: probability that a unit is dropped.
        layer: -1 before the layers, their number after them.
        width: H.
    """

    name: str
    node: fx.Node
    rate: float
    layer: int
    width: int


def find_sites(captured: Captured, depth: int | None, rate: float | None) -> tuple[list[Site], bool]:
    """Every site, in the order they run, and whether the layers are known.

    Args:
        depth: number of layers of the model.
        rate: of every site; None keeps each one's own. A model that has no dropout on the hidden states of its
            layers (as Llama has none) gets it at the end of each residual branch when a rate is given.
    """
    nodes = [node for node in captured.graph.nodes if node.op == "call_function"]
    numbers = LayerNumbers(((path, key) for node in nodes for path, key, _ in module_path(node)), depth)
    if (
        rate is not None
        and numbers.known
        and not any(
            _hidden(node, captured) and _layer(node, numbers) is not None
            for node in nodes
            if op_name(node) == "dropout"
        )
    ):
        _insert_branch_dropout(captured, numbers, rate)
    sites: list[Site] = []
    names: dict[str, int] = {}
    entered = False
    for node in captured.graph.nodes:
        layer = _layer(node, numbers) if node.op == "call_function" else None
        entered = entered or layer is not None
        if op_name(node) != "dropout" or not _hidden(node, captured):
            continue
        path = module_path(node)[-1][0] if module_path(node) else "dropout"
        call = names[path] = names.get(path, -1) + 1
        outside = -1 if not entered else int(depth or 0)
        chosen = float(node.args[1]) if rate is None else rate
        if chosen > 0:
            width = (sizes(node) or ())[-1]
            sites.append(
                Site(
                    f"{path}@{call}" if call else path,
                    node,
                    chosen,
                    outside if layer is None else layer,
                    width,
                )
            )
    return sites, numbers.known


def _layer(node: fx.Node, numbers: LayerNumbers) -> int | None:
    return numbers.of([(path, key) for path, key, _ in module_path(node)])


def _hidden(node: fx.Node, captured: Captured) -> bool:
    shape = sizes(node)
    batch = (captured.rows, captured.tokens), (captured.rows,)
    return shape is not None and shape[:-1] in batch and isinstance(shape[-1], int)


def _insert_branch_dropout(captured: Captured, numbers: LayerNumbers, rate: float) -> None:
    """Dropout where the attention and the feed-forward block of each layer return: what their children, the norms
    left out, hand back to the layer."""
    for node in list(captured.graph.nodes):
        if node.op != "call_function" or not _hidden(node, captured):
            continue
        path = module_path(node)
        inside = next((i for i, (p, k, _) in enumerate(path) if numbers.of([(p, k)]) is not None), None)
        if inside is None or inside + 1 >= len(path):
            continue
        child = path[inside + 1]
        leaves = any(
            child not in module_path(user) and _layer(user, numbers) is not None for user in node.users
        )
        if not leaves or "norm" in child[2].lower():
            continue
        with captured.graph.inserting_after(node):
            dropout = captured.graph.call_function(_DROPOUT, (node, rate, False))
        stack = node.meta.get("nn_module_stack") or {}
        kept = dict(list(stack.items())[: len(stack) - len(path) + inside + 2])
        dropout.meta = {"val": node.meta["val"], "nn_module_stack": kept}
        node.replace_all_uses_with(dropout, delete_user_cb=lambda user, made=dropout: user is not made)
