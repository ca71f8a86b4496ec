"""A captured classifier, rewritten as two programs: what all samples share, and what each sample does for itself.

    shared:   inputs -> the values that the samples start from, once per batch
    sampled:  those values, masks `[G, H]` of each site -> logits of G samples, `[G * B, C_m]`

The rows of a batch fan out exactly at the first stochastic dropout, be it inside a layer, and the last layer does for
the token that the head reads what it would else do for all (`reading`). Constant parts are computed once, here.
Knows graphs; draws no mask and runs nothing but those constants.

Samples lie sample-major: row b of sample g is row g*B + b. Shapes: B rows of a batch, T tokens, G samples run
together, H hidden size, C_m labels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import sympy
import torch
from torch import fx, nn

from muki_ray.teachers import kernels, packing
from muki_ray.teachers.capture import Captured, UncapturableError, expression, op_name, sizes
from muki_ray.teachers.reading import Reading, find_reading, operand_axes
from muki_ray.teachers.sites import Site

aten = torch.ops.aten
# operations that take a shape, and at which place
_TAKES_SHAPE = {"view": 1, "reshape": 1, "_unsafe_view": 1, "expand": 1}


@dataclass(frozen=True)
class Program:
    """Both programs, ready to run.

    Attributes:
        shared: `(rows, tokens, *inputs) -> tuple`; of the logits alone where nothing is sampled.
        sampled: `(samples, rows, tokens, shared_0, ..., mask_0, ...) -> logits`, `rows` counting all samples', the
            masks in the order of `sites`; None where nothing is sampled.
        inputs: names of the inputs, in their order.
        per_row: of each shared value, how many entries of its first dimension belong to one row; 0: it is the
            same for all rows.
        sites: names of the sites, in the masks' order.
        widened: whether any operation on all tokens is sampled; else the samples cost next to nothing.
    """

    shared: fx.GraphModule
    sampled: fx.GraphModule | None
    inputs: tuple[str, ...]
    per_row: tuple[int, ...]
    sites: tuple[str, ...]
    widened: bool


def compile_program(captured: Captured, sites: Sequence[Site]) -> Program:
    """Rewrite a captured forward pass for these stochastic sites.

    Raises:
        UncapturableError: samples would have to share a value whose rows cannot be told apart.
    """
    return _Compiler(captured, sites).program()


class _Compiler:
    def __init__(self, captured: Captured, sites: Sequence[Site]) -> None:
        self.captured = captured
        self.sites = {site.node: site for site in sites}
        self.reading: Reading = find_reading(captured)
        self.rows, self.tokens = captured.rows, captured.tokens
        inputs = set(captured.inputs.values())
        self.from_inputs: set[fx.Node] = set()
        self.from_sizes: set[fx.Node] = set()
        self.sampled: set[fx.Node] = set()
        for node in captured.graph.nodes:
            operands = node.all_input_nodes
            number = expression(node) is not None
            if not number and (node in inputs or any(n in self.from_inputs for n in operands)):
                self.from_inputs.add(node)
            if number or any(n in self.from_sizes for n in operands):
                self.from_sizes.add(node)
            if not number and (node in self.sites or any(n in self.sampled for n in operands)):
                self.sampled.add(node)
        self.constants = dict(captured.constants)
        self.device = next(iter(captured.inputs.values())).meta["val"].device.type
        self.folded: dict[fx.Node, Any] = {}

    # -- what is known before any batch ----------------------------------------------------------------

    def constant(self, node: fx.Node) -> bool:
        """Whether a value is the same for every batch."""
        return node not in self.from_inputs and node not in self.from_sizes and node.op != "output"

    def value_of(self, node: fx.Node) -> Any:
        """A constant's value, computed once."""
        if node in self.constants:
            return self.constants[node]
        if node not in self.folded:
            with torch.no_grad():
                args, kwargs = fx.map_arg((node.args, node.kwargs), self.value_of)
                self.folded[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return self.folded[node]

    # -- the two programs ------------------------------------------------------------------------------

    def program(self) -> Program:
        """Write shared and sampled, in the order of the graph."""
        shared, sampled = _Writer(self, sampled=False), _Writer(self, sampled=True)
        for node in self._ordered():
            if node.op != "call_function" or node not in self.from_inputs:
                continue
            if node not in self.sampled:
                shared.write(node)
            elif not self._fused(node):
                sampled.write(node)
        output = self.captured.output
        names = tuple(self.captured.inputs)
        if output not in self.sampled:
            return Program(shared.module((shared.own[output],)), None, names, (), (), False)
        module = sampled.module(sampled.own[output])
        crossing = list(sampled.crossing)
        values = tuple(shared.value(node, axis) for node, axis in crossing)
        per_row = tuple(self.rows_in(node) for node, _ in crossing)
        widened = any(
            node not in self.reading.narrow and self.tokens in (sizes(node) or ()) for node in self.sampled
        )
        return Program(shared.module(values), module, names, per_row, tuple(sampled.masks), widened)

    def _ordered(self) -> list[fx.Node]:
        """The nodes as captured; first those that say which token is read, for others ask for it early."""
        position = self.reading.position
        first: set[fx.Node] = set()
        waiting = [position] if isinstance(position, fx.Node) else []
        while waiting:
            node = waiting.pop()
            if node not in first:
                first.add(node)
                waiting += node.all_input_nodes
        nodes = list(self.captured.graph.nodes)
        return [n for n in nodes if n in first] + [n for n in nodes if n not in first]

    def rows_in(self, node: fx.Node) -> int:
        """Entries of a value's first dimension that belong to one row; 0: the value does not depend on the rows."""
        shape = sizes(node)
        if shape is None:
            raise UncapturableError(f"the samples share {node.name}, which is no tensor")
        if any(self.rows in sympy.sympify(size).free_symbols for size in shape[1:]):
            raise UncapturableError(f"the samples share {node.name}, whose rows lie in a later dimension")
        times = sympy.sympify(shape[0]) / self.rows if shape else sympy.Integer(0)
        if shape and self.rows in sympy.sympify(shape[0]).free_symbols:
            if not times.is_Integer:
                raise UncapturableError(f"the samples share {node.name}, whose rows cannot be told apart")
            return int(times)
        return 0

    def packed_by(self, node: fx.Node) -> bool:
        """Whether this is a GELU that the projection before it does."""
        source = node.args[0] if node.args else None
        if op_name(node) != "gelu" or node.kwargs or len(node.args) != 1 or not isinstance(source, fx.Node):
            return False
        weight = source.args[1] if op_name(source) == "linear" else None
        known = isinstance(weight, fx.Node) and self.constant(weight)
        same = (source in self.sampled) == (node in self.sampled)
        narrow = self.reading.narrow
        return (
            len(source.users) == 1
            and known
            and same
            and narrow.get(source) == narrow.get(node)
            and packing.fits(
                self.value_of(weight)  # type: ignore[arg-type]
            )
        )

    def _fused(self, node: fx.Node) -> bool:
        """A masked value that is only added to another one is masked in the addition."""
        if node not in self.sites or len(node.users) != 1:
            return False
        (user,) = node.users
        same = [sizes(n) == sizes(node) for n in user.all_input_nodes]
        return op_name(user) == "add" and len(same) == 2 and all(same) and not user.kwargs


class _Writer:
    """Writes one of the two graphs; converts each value to what its reader wants."""

    def __init__(self, compiler: _Compiler, *, sampled: bool) -> None:
        self.compiler, self.sampled = compiler, sampled
        self.graph = fx.Graph()
        self.own: dict[fx.Node, fx.Node] = {}  # values in the form that they are computed in
        self.made: dict[tuple[fx.Node, int | None, bool], fx.Node] = {}
        self.crossing: dict[tuple[fx.Node, int | None], fx.Node] = {}
        self.masks: dict[str, fx.Node] = {}
        self.attributes: dict[str, Any] = {}
        self.numbers: dict[Any, Any] = {}
        self.additive: dict[tuple[fx.Node, int | None, Any], fx.Node] = {}
        head = ["samples"] if sampled else []
        self.arguments = {name: self.graph.placeholder(name) for name in (*head, "rows", "tokens")}
        if not sampled:
            for name, node in compiler.captured.inputs.items():
                self.own[node] = self.graph.placeholder(name)

    # -- values ----------------------------------------------------------------------------------------

    def value(self, node: fx.Node, axis: int | None = None, *, fanned: bool = True) -> fx.Node:
        """A tensor in this graph: for one token along `axis`, or whole; of all samples, or (not `fanned`) of one."""
        compiler = self.compiler
        fanned = fanned and self.sampled
        key = (node, axis, fanned)
        if key in self.made:
            return self.made[key]
        narrow = compiler.reading.narrow.get(node)
        if node not in compiler.from_inputs:
            made = self._narrowed(node, self._recomputed(node), axis)
        elif (node in compiler.sampled) == self.sampled:
            made = self.own[node]
            if axis is not None and narrow is None:
                made = self._narrowed(node, made, axis)
        else:  # shared, wanted by the samples
            made = self._crossing(node, axis)
            if fanned and compiler.rows_in(node):
                made = self.graph.call_function(kernels.repeat, (made, self.arguments["samples"]))
        self.made[key] = made
        return made

    def _crossing(self, node: fx.Node, axis: int | None) -> fx.Node:
        key = (node, self.compiler.reading.narrow.get(node, axis))
        if key not in self.crossing:
            with self.graph.inserting_before(self._first()):
                self.crossing[key] = self.graph.placeholder(f"shared_{len(self.crossing)}")
        return self.crossing[key]

    def _first(self) -> fx.Node:
        """The first node that is no argument: placeholders stand before it."""
        return next((n for n in self.graph.nodes if n.op != "placeholder"), self.graph._root)

    def _recomputed(self, node: fx.Node) -> fx.Node:
        """A value that depends on no input: the same for every batch, or on its size only."""
        key = (node, None, True)
        if key not in self.made:
            if self.compiler.constant(node):
                self.made[key] = self._attribute(self.compiler.value_of(node))
            else:
                self.made[key] = self._copied(node, {}, {})
        return self.made[key]

    def _attribute(self, tensor: Any) -> fx.Node:
        name = f"constant_{len(self.attributes)}"
        self.attributes[name] = tensor
        return self.graph.create_node("get_attr", name)

    def _narrowed(self, node: fx.Node, value: fx.Node, axis: int | None) -> fx.Node:
        """One token of a whole value."""
        if axis is None or (sizes(node) or ())[axis] != self.compiler.tokens:
            return value
        position = self.compiler.reading.position
        if isinstance(position, int):
            return self.graph.call_function(aten.narrow.default, (value, axis, position, 1))
        if position is None:
            raise UncapturableError("no token is read")
        return self.graph.call_function(kernels.token_of_each_row, (value, axis, self.value(position)))

    def _number(self, found: Any) -> Any:
        """A whole number that depends on the batch's size: sums and products of B and T."""
        if isinstance(found, int) or found.is_Integer:
            return int(found)
        if found not in self.numbers:
            if found in (self.compiler.rows, self.compiler.tokens):
                made = self.arguments["rows" if found == self.compiler.rows else "tokens"]
            elif found.is_Add or found.is_Mul:
                step = operator.add if found.is_Add else operator.mul
                made = reduce(
                    lambda a, b: self.graph.call_function(step, (a, b)), map(self._number, found.args)
                )
            else:
                raise UncapturableError(f"it computes a size as {found}")
            self.numbers[found] = made
        return self.numbers[found]

    # -- operations ------------------------------------------------------------------------------------

    def write(self, node: fx.Node) -> None:
        """Append one operation of the captured graph."""
        if expression(node) is not None:
            return
        compiler = self.compiler
        if node in compiler.sites:
            self.own[node] = self._masked(node)
            return
        fused = [n for n in node.all_input_nodes if n in compiler.sites and compiler._fused(n)]
        if fused:
            self.own[node] = self._masked_sum(node, fused[0])
            return
        narrow = compiler.reading.narrow.get(node)
        axes = self._operand_axes(node, narrow)
        if node.target is operator.getitem and narrow is not None and axes == {}:
            whole = self.graph.call_function(node.target, (self.value(node.args[0]), node.args[1]))  # type: ignore[arg-type]
            self.own[node] = self._narrowed(node, whole, narrow)
            return
        changes: dict[int, Any] = {}
        if node in compiler.reading.reads:
            source = self.value(node.args[0], compiler.reading.narrow[node.args[0]])  # type: ignore[arg-type, index]
            self.own[node] = self.graph.call_function(aten.select.int, (source, 1, 0))
            return
        if narrow is not None and op_name(node) in _TAKES_SHAPE:
            place = _TAKES_SHAPE[op_name(node)]
            shape = list(node.args[place])  # type: ignore[arg-type]
            shape[narrow] = 1
            changes[place] = shape
        self.own[node] = (
            self._packed(node, axes) or self._attention(node, axes) or self._copied(node, axes, changes)
        )

    def _attention(self, node: fx.Node, axes: dict[fx.Node, int]) -> fx.Node | None:
        """Attention on a CPU, where whole matrix products beat Torch's fused kernel."""
        if op_name(node) != "scaled_dot_product_attention" or self.compiler.device != "cpu":
            return None
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        query, key, value = given["query"], given["key"], given["value"]
        shape, mask = sizes(query), given.get("attn_mask")  # type: ignore[arg-type]
        plain = not given.get("is_causal") and not given.get("dropout_p") and not given.get("enable_gqa")
        if not plain or shape is None or len(shape) != 4 or sizes(key) is None or sizes(key)[1] != shape[1]:  # type: ignore[arg-type, index]
            return None
        q, k, v = (self.value(n, axes.get(n)) for n in (query, key, value))  # type: ignore[arg-type]
        added = None
        if isinstance(mask, fx.Node):  # the same for every layer
            place = (mask, axes.get(mask), shape[1])
            if place not in self.additive:
                self.additive[place] = self.graph.call_function(
                    kernels.additive, (self.value(mask, axes.get(mask)), q)
                )
            added = self.additive[place]
        scale = given.get("scale")
        return self.graph.call_function(
            kernels.attention,
            (q, k, v, added, float(shape[-1]) ** -0.5 if scale is None else scale),
        )

    def _packed(self, node: fx.Node, axes: dict[fx.Node, int]) -> fx.Node | None:
        """A projection by a weight that is laid out once, with the activation that follows it where that is known."""
        if self.compiler.packed_by(node):
            return self.value(node.args[0], axes.get(node.args[0]))  # type: ignore[arg-type]
        weight = node.args[1] if op_name(node) == "linear" else None
        if not isinstance(weight, fx.Node) or not self.compiler.constant(weight):
            return None
        tensor = self.compiler.value_of(weight)
        if not packing.fits(tensor):
            return None
        bias = node.args[2] if len(node.args) > 2 else None
        (source, *_) = node.args
        arguments = (
            self.value(source, axes.get(source)),  # type: ignore[arg-type]
            self._attribute(packing.pack(tensor)),
            self.value(bias) if isinstance(bias, fx.Node) else None,
            "gelu" if any(self.compiler.packed_by(user) for user in node.users) else "none",
        )
        return self.graph.call_function(packing.linear, arguments)

    def _operand_axes(self, node: fx.Node, narrow: int | None) -> dict[fx.Node, int]:
        if narrow is None:
            return {}
        if node.target is operator.getitem and node.args[0] not in self.compiler.reading.narrow:
            return {}
        return operand_axes(node, narrow, self.compiler.tokens) or {}

    def _copied(self, node: fx.Node, axes: dict[fx.Node, int], changes: dict[int, Any]) -> fx.Node:
        def operand(n: fx.Node) -> Any:
            if expression(n) is not None:
                return self._number(expression(n))
            return self.value(n, axes.get(n))

        args = fx.map_arg(tuple(changes.get(i, a) for i, a in enumerate(node.args)), operand)
        kwargs = fx.map_arg(dict(node.kwargs), operand)
        return self.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]

    def _mask(self, node: fx.Node) -> fx.Node:
        name = self.compiler.sites[node].name
        if name not in self.masks:
            with self.graph.inserting_before(self._first()):
                self.masks[name] = self.graph.placeholder(f"mask_{len(self.masks)}")
        return self.masks[name]

    def _masked(self, node: fx.Node) -> fx.Node:
        source: fx.Node = node.args[0]  # type: ignore[assignment]
        axis = self.compiler.reading.narrow.get(node)
        x = self.value(source, axis, fanned=False)
        return self.graph.call_function(kernels.masked, (x, self._mask(node), self._of_all_samples(source)))

    def _of_all_samples(self, node: fx.Node) -> bool:
        """Whether `value(node, fanned=False)` has the rows of all samples."""
        if node in self.compiler.from_inputs:
            return node in self.compiler.sampled
        return self.compiler.rows in sympy.sympify((sizes(node) or (0,))[0]).free_symbols

    def _masked_sum(self, node: fx.Node, site: fx.Node) -> fx.Node:
        """`mask * x + other`, in one pass over the memory."""
        source: fx.Node = site.args[0]  # type: ignore[assignment]
        (other,) = [n for n in node.all_input_nodes if n is not site]
        axis = self.compiler.reading.narrow.get(node)
        x, plus = self.value(source, axis, fanned=False), self.value(other, axis, fanned=False)
        fanned = self._of_all_samples(source), self._of_all_samples(other)
        return self.graph.call_function(kernels.masked_sum, (x, self._mask(site), plus, *fanned))

    def module(self, result: Any) -> fx.GraphModule:
        """The finished graph; its arguments in the order in which they were asked for."""
        self.graph.output(result)
        root = nn.Module()
        for name, value in self.attributes.items():
            if isinstance(value, torch.Tensor):
                root.register_buffer(name, value)
            else:
                setattr(root, name, value)
        module = fx.GraphModule(root, self.graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module
