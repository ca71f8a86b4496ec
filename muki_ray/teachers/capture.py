"""The classifier's forward pass as a list of ATen operations, captured once by `torch.export`.

What comes out is a plain FX graph: parameters and inputs are placeholders, every value knows its shape with the
rows `B` and tokens `T` of a batch as symbols, and the module it was computed in. No modelling code is copied, and
nothing here knows any architecture. Knows Torch; knows no dropout, no masks.

Shapes: B rows of a batch, T tokens, C_m labels.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import fx, nn

aten = torch.ops.aten
_HIGHER_ORDER = torch.ops.higher_order
# where the model stands in what is traced
_PREFIX = "model."
# operations that only guard the trace
_GUARDS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "_assert_async")


class UncapturableError(Exception):
    """This model's forward pass cannot be had as one graph that holds for every batch."""


@dataclass(frozen=True)
class Captured:
    """A forward pass.

    Attributes:
        graph: its operations; one output, the logits.
        inputs: placeholder of each of the model's inputs.
        constants: tensor of each other placeholder: parameters, buffers and lifted constants.
        weights: of those that are parameters or buffers of the model, their names there.
        rows, tokens: the symbols B and T of the shapes.
    """

    graph: fx.Graph
    inputs: dict[str, fx.Node]
    constants: dict[fx.Node, torch.Tensor]
    weights: dict[fx.Node, str]
    rows: Any
    tokens: Any

    @property
    def output(self) -> fx.Node:
        """The node of the logits, `[B, C_m]`."""
        node: fx.Node = next(n for n in reversed(self.graph.nodes) if n.op == "output").args[0]
        return node


class _LogitsOnly(nn.Module):
    """The model without what comes beside its logits: caches of keys and values have no place in a graph."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        taken = signature(model.forward).parameters
        self.extra = {"use_cache": False} if "use_cache" in taken else {}

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        first, *others = inputs.values()
        for other in others:  # all inputs have the same rows and tokens
            torch._check(other.shape[0] == first.shape[0])
            torch._check(other.shape[1] == first.shape[1])
        logits: torch.Tensor = self.model(**inputs, **self.extra).logits
        return logits


def capture(model: nn.Module, probe: Mapping[str, torch.Tensor]) -> Captured:
    """Trace a model in eval mode.

    Args:
        probe: a tokenized batch of at least two rows and two tokens.

    Raises:
        UncapturableError: the model's code decides by the values that it computes, or uses what no graph can hold.
    """
    inputs = dict(probe)
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    try:
        with torch.no_grad():
            program = torch.export.export(
                _LogitsOnly(model),
                (inputs,),
                dynamic_shapes=(dict.fromkeys(inputs, free),),
                strict=False,
            )
    except Exception as problem:  # whatever a model's code makes the tracer raise
        raise UncapturableError(f"{type(problem).__name__}: {problem}") from problem
    graph = _flat(program.graph_module)
    kinds = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    weights = {**kinds.inputs_to_parameters, **kinds.inputs_to_buffers}
    named = {**weights, **kinds.inputs_to_lifted_tensor_constants}
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    user = [placeholders[name] for name in kinds.user_inputs]
    constants = {placeholders[name]: tensors[target].detach() for name, target in named.items()}
    if len(user) != len(inputs) or len(user) + len(constants) != len(placeholders):
        raise UncapturableError("its graph has inputs of unknown kind")
    shape = user[0].meta["val"].shape
    if any(isinstance(size, int) for size in shape[:2]):
        raise UncapturableError("its graph holds for one batch size or length only")
    _plain_projections(graph)
    return Captured(
        graph,
        dict(zip(inputs, user, strict=True)),
        constants,
        {placeholders[name]: target.removeprefix(_PREFIX) for name, target in weights.items()},
        shape[0].node.expr,
        shape[1].node.expr,
    )


def module_path(node: fx.Node) -> list[tuple[str, str, str]]:
    """Modules that a node was computed in, outermost first: path in the classifier, key of the call, class.

    A module that is called twice has one path and two keys.
    """
    stack = node.meta.get("nn_module_stack") or {}
    return [
        (path.removeprefix(_PREFIX), key, kind if isinstance(kind, str) else kind.__name__)
        for key, (path, kind) in stack.items()
        if path.startswith(_PREFIX)
    ]


def sizes(node: fx.Node) -> tuple[Any, ...] | None:
    """Shape of a node's tensor: whole numbers, and expressions of B and T; None for what is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)


def expression(node: fx.Node) -> Any:
    """What a number in the graph is: a whole number or an expression of B and T; None for what is no number."""
    value = node.meta.get("val")
    if isinstance(value, torch.SymInt):
        return value.node.expr
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flat(module: fx.GraphModule) -> fx.Graph:
    """One graph without nested ones, guards, in-place operations and what nobody reads."""
    graph = fx.Graph()
    environment: dict[fx.Node, Any] = {}
    result = _inline(module, graph, environment, [])
    graph.output(result)
    for node in reversed(list(graph.nodes)):
        if node.op not in ("output", "placeholder") and not node.users:
            graph.erase_node(node)
    return graph


def _inline(
    module: fx.GraphModule, graph: fx.Graph, environment: dict[fx.Node, Any], arguments: list[Any]
) -> Any:
    """Copy a module's nodes into `graph`; returns what its output stands for there."""
    given = iter(arguments)
    for node in module.graph.nodes:
        if node.op == "output":
            result = node.args[0]
            single = (
                result[0]
                if not arguments and isinstance(result, (tuple, list)) and len(result) == 1
                else result
            )
            return fx.map_arg(single, lambda n: environment[n])
        if node.op == "placeholder" and arguments:
            environment[node] = next(given)
        elif node.op == "get_attr":
            environment[node] = getattr(module, str(node.target))  # a nested graph
        elif node.op == "call_function" and any(guard in str(node.target) for guard in _GUARDS):
            continue
        elif node.op == "call_function" and node.target in _nested():
            inner, handed = _nested_call(node, environment)
            environment[node] = _inline(inner, graph, environment, handed)
        elif node.target is operator.getitem and not isinstance(environment[node.args[0]], fx.Node):
            environment[node] = environment[node.args[0]][node.args[1]]
        else:
            copied = graph.node_copy(node, lambda n: environment[n])
            environment[node] = copied
            if copied.op == "call_function":
                _out_of_place(copied, node, environment)
    raise UncapturableError("its graph has no output")


def _nested() -> tuple[Any, ...]:
    return (_HIGHER_ORDER.wrap_with_set_grad_enabled, _HIGHER_ORDER.wrap_with_autocast)


def _nested_call(node: fx.Node, environment: dict[fx.Node, Any]) -> tuple[fx.GraphModule, list[Any]]:
    """The graph under a change of gradient or autocast mode, neither of which changes an inference, and its inputs."""
    arguments = [environment[a] if isinstance(a, fx.Node) else a for a in node.args]
    place, inner = next((i, a) for i, a in enumerate(arguments) if isinstance(a, fx.GraphModule))
    autocast = node.target is _HIGHER_ORDER.wrap_with_autocast
    if autocast and arguments[2]:  # device, dtype, enabled, cache
        raise UncapturableError("it runs a part under autocast")
    return inner, arguments[place + 1 :]


def _out_of_place(copied: fx.Node, node: fx.Node, environment: dict[fx.Node, Any]) -> None:
    """Turn `x.add_(y)` into `x = x.add(y)`: values are read more than once here."""
    packet = getattr(copied.target, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return
    functional = getattr(getattr(aten, name[:-1], None), getattr(copied.target, "_overloadname", ""), None)
    first = node.args[0] if node.args else None
    if functional is None or not isinstance(first, fx.Node):
        raise UncapturableError(f"it changes a tensor in place by {copied.target}")
    copied.target = functional
    environment[first] = copied  # later readers of the changed tensor


def _plain_projections(graph: fx.Graph) -> None:
    """Write `addmm` on flattened rows as the linear map that it is, so that rows and tokens stay apart."""
    for node in list(graph.nodes):
        if op_name(node) != "addmm" or node.kwargs or len(node.args) != 3:
            continue
        bias, flat, weight = node.args
        if not (
            isinstance(flat, fx.Node) and op_name(flat) in ("view", "reshape") and isinstance(weight, fx.Node)
        ):
            continue
        source = flat.args[0]
        before, after = sizes(source), [sizes(user) for user in node.users]  # type: ignore[arg-type]
        views = all(op_name(user) in ("view", "reshape") for user in node.users)
        if before is None or not views or any(a is None or a[:-1] != before[:-1] for a in after):
            continue
        first = next(iter(node.users))
        with graph.inserting_before(node):
            turned = graph.call_function(aten.t.default, (weight,))
            turned.meta = {"val": weight.meta["val"].t()}
            linear = graph.call_function(aten.linear.default, (source, turned, bias))
            linear.meta = {**node.meta, "val": first.meta["val"]}
        for user in list(node.users):
            user.replace_all_uses_with(linear)
            graph.erase_node(user)
        graph.erase_node(node)
        if not flat.users:
            graph.erase_node(flat)


def op_name(node: fx.Node) -> str:
    """Such as `linear`, whatever the overload; empty for what is no ATen operation."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", ""))
