"""Which tokens the answer needs: a classifier's head reads one token of the last layer, so most of that layer is waste.

Walks a captured graph backwards from the place where one token is picked (`hidden[:, 0]`, or the last token of each
row) and moves the choice before every operation that treats tokens alike: projections, norms, activations, the
queries of an attention. It ends where an operation mixes tokens (an attention's keys and values) or is not known
here; what is not known is left as it is, so the answer never changes. Knows graphs; runs nothing.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy
from torch import fx

from muki_ray.teachers.capture import Captured, op_name, sizes

# where the token axis of each operand stands; operands not named are needed whole
Demand = dict[fx.Node, int]

_POINTWISE = frozenset(
    "add sub mul div gelu tanh relu silu sigmoid neg pow rsqrt sqrt exp erf abs to dropout clone contiguous alias detach "
    "masked_fill where clamp bitwise_not logical_not _to_copy".split()
)


@dataclass(frozen=True)
class Reading:
    """What may be computed for one token instead of all.

    Attributes:
        position: the token that is read, or the node that says which, `[B]`; None where all are needed.
        narrow: nodes that are computed for that token only, and where their token axis stands.
        reads: the nodes that pick the token.
    """

    position: int | fx.Node | None = None
    narrow: dict[fx.Node, int] = field(default_factory=dict)
    reads: frozenset[fx.Node] = frozenset()


def find_reading(captured: Captured) -> Reading:
    """The largest part of the graph that one token suffices for."""
    tokens = captured.tokens
    reads: dict[fx.Node, tuple[fx.Node, int, int | fx.Node]] = {}
    for node in captured.graph.nodes:
        read = _read(node, tokens)
        if read is not None:
            reads[node] = read
    if not reads:
        return Reading()
    # the last one is the head's; other reads count only where they want the same token
    position = list(reads.values())[-1][2]
    used = {node for node, read in reads.items() if read[2] == position}
    demands: dict[fx.Node, set[int | None]] = {}
    narrow: dict[fx.Node, int] = {}
    for node in reversed(captured.graph.nodes):
        wanted = demands.get(node, set())
        operands: dict[fx.Node, int | None] = dict.fromkeys(node.all_input_nodes)
        if node in used:
            source, axis, _ = reads[node]
            operands[source] = axis
        elif len(wanted) == 1 and node.op == "call_function":
            (axis_or_none,) = wanted
            demand = None if axis_or_none is None else operand_axes(node, axis_or_none, tokens)
            if demand is not None and axis_or_none is not None:
                narrow[node] = axis_or_none
                operands.update(demand)
        for operand, axis_of in operands.items():
            demands.setdefault(operand, set()).add(axis_of)
    return (
        Reading(position, narrow, frozenset(n for n in used if reads[n][0] in narrow))
        if narrow
        else Reading()
    )


def _read(node: fx.Node, tokens: Any) -> tuple[fx.Node, int, int | fx.Node] | None:
    """(tensor, its token axis, which token) where a node picks one token."""
    name = op_name(node)
    if name == "select":
        source, axis, position = _argument(node, 0), _argument(node, 1), _argument(node, 2)
        shape = sizes(source)
        fits = shape is not None and len(shape) >= 3 and isinstance(position, int)
        if fits and shape is not None and axis == 1 and shape[1] == tokens and position >= 0:
            return source, 1, position
    if name == "index":  # hidden[arange(B), positions]
        source, indices = _argument(node, 0), _argument(node, 1)
        shape = sizes(source)
        if shape is None or len(shape) != 3 or shape[1] != tokens or len(indices) != 2 or None in indices:
            return None
        if op_name(indices[0]) == "arange" and sizes(indices[1]) == (shape[0],):
            return source, 1, indices[1]
    return None


def _argument(node: fx.Node, place: int, default: Any = None) -> Any:
    return node.args[place] if len(node.args) > place else default


def operand_axes(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    """The token axis of each operand, when this node's result is wanted for one token along `axis`.

    None: this operation mixes tokens, or is not known. Operands not named are needed whole.
    """
    shape = sizes(node) or _first_sizes(node)
    if shape is None or axis >= len(shape) or shape[axis] != tokens:
        return None
    if node.target is operator.getitem:
        return {_argument(node, 0): axis}
    name = op_name(node)
    if name in _POINTWISE:
        return _broadcast(node.all_input_nodes, axis, len(shape), tokens)
    rule = _RULES.get(name)
    return None if rule is None else rule(node, axis, tokens)


def _first_sizes(node: fx.Node) -> tuple[Any, ...] | None:
    """Shape of the first of several tensors, for operations that split one."""
    users = [user for user in node.users if user.target is operator.getitem]
    return sizes(users[0]) if users and len(users) == len(node.users) else None


def _split(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    source, along = _argument(node, 0), _argument(node, 2, 0)
    return None if along % len(sizes(source) or ()) == axis else {source: axis}


def _broadcast(operands: list[fx.Node], axis: int, rank: int, tokens: Any) -> Demand | None:
    demand: Demand = {}
    for operand in operands:
        shape = sizes(operand)
        if shape is None:
            continue
        place = axis - (rank - len(shape))
        if place < 0 or shape[place] == 1:
            continue  # the same for every token
        if shape[place] != tokens:
            return None
        demand[operand] = place
    return demand


def _linear(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    source = _argument(node, 0)
    return {source: axis} if axis < len(sizes(source) or ()) - 1 else None


def _layer_norm(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    source, normalized = _argument(node, 0), _argument(node, 1)
    return {source: axis} if axis < len(sizes(source) or ()) - len(normalized) else None


def _along(place: int) -> Callable[[fx.Node, int, Any], Demand | None]:
    """Operations along given axes (`softmax`, a mean that keeps its axis): fine along any but the tokens'."""

    def rule(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
        source, along = _argument(node, 0), _argument(node, place)
        rank = len(sizes(source) or ())
        if len(sizes(node) or ()) != rank or along is None:
            return None
        axes = {a % rank for a in (along if isinstance(along, (list, tuple)) else [along])}
        return None if axis in axes else {source: axis}

    return rule


def _transpose(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    rank = len(sizes(node) or ())
    first, second = _argument(node, 1) % rank, _argument(node, 2) % rank
    return {_argument(node, 0): {first: second, second: first}.get(axis, axis)}


def _permute(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    return {_argument(node, 0): _argument(node, 1)[axis] % len(sizes(node) or ())}


def _reshape(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    """The token axis stays one where as many elements lie before it as did."""
    source = _argument(node, 0)
    before, after = sizes(source) or (), sizes(node) or ()
    elements = sympy.prod(after[:axis])
    for place in range(len(before)):
        if before[place] == tokens and sympy.expand(sympy.prod(before[:place]) - elements) == 0:
            return {source: place}
    return None


def _unsqueeze(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    added = _argument(node, 1) % len(sizes(node) or ())
    return {_argument(node, 0): axis - (added < axis)}


def _slice(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    source, along = _argument(node, 0), _argument(node, 1, 0)
    whole = (_argument(node, 2) or 0) == 0 and (_argument(node, 4, 1) == 1) and sizes(source) == sizes(node)
    return {source: axis} if whole or along % len(sizes(node) or ()) != axis else None


def _cat(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    if _argument(node, 1, 0) % len(sizes(node) or ()) == axis:
        return None
    return dict.fromkeys(_argument(node, 0), axis)


def _expand(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    return _broadcast([_argument(node, 0)], axis, len(sizes(node) or ()), tokens)


def _attention(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    """Only the queries: every token's key and value is looked at."""
    query, mask = _argument(node, 0), _argument(node, 3, node.kwargs.get("attn_mask"))
    causal = _argument(node, 5, node.kwargs.get("is_causal", False))
    rank = len(sizes(node) or ())
    if axis != rank - 2 or causal:
        return None
    demand: Demand = {query: axis}
    if isinstance(mask, fx.Node):
        shape = sizes(mask) or ()
        if len(shape) >= 2 and shape[-2] == tokens:
            demand[mask] = len(shape) - 2
    return demand


def _matmul(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    left, right = _argument(node, 0), _argument(node, 1)
    rank = len(sizes(node) or ())
    if len(sizes(left) or ()) != rank or len(sizes(right) or ()) != rank or left is right:
        return None
    return {rank - 2: {left: axis}, rank - 1: {right: axis}}.get(axis)


def _gather(node: fx.Node, axis: int, tokens: Any) -> Demand | None:
    source, along, index = _argument(node, 0), _argument(node, 1), _argument(node, 2)
    if along % len(sizes(node) or ()) == axis:
        return {index: axis}
    return {source: axis, index: axis} if (sizes(source) or ())[axis] == tokens else None


_RULES: dict[str, Callable[[fx.Node, int, Any], Demand | None]] = {
    "linear": _linear, "layer_norm": _layer_norm, "rms_norm": _layer_norm, "softmax": _along(1), "mean": _along(1),
    "transpose": _transpose, "permute": _permute, "view": _reshape, "reshape": _reshape, "_unsafe_view": _reshape,
    "unsqueeze": _unsqueeze, "slice": _slice, "cat": _cat, "expand": _expand, "matmul": _matmul, "bmm": _matmul,
    "scaled_dot_product_attention": _attention, "gather": _gather,
    "chunk": _split, "split": _split, "split_with_sizes": _split,
}  # fmt: skip
