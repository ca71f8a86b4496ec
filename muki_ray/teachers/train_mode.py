"""A classifier in train mode as a graph, without what its answer does not need: what classical dropout draws with.

The head reads one token, so most of the last layer is waste, and Torch's dropout is slow on a CPU. The samples' law is
that of the model itself in train mode; the random stream is another. Knows graphs and Torch; knows no seeds, no samples.

Shapes: B rows of a batch, T tokens, C_m labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from muki_ray.teachers.capture import UncapturableError, op_name
from muki_ray.teachers.capture_cache import capture_once
from muki_ray.teachers.dropout_kernels import attention, dropout
from muki_ray.teachers.hooks import Inputs
from muki_ray.teachers.program import compile_program


class TrainMode:
    """The model's answers with all of its dropout on, or with none.

    Args:
        model: in eval mode, where it is again afterwards.
        probe: a tokenized batch of at least two rows of unequal length.

    Raises:
        UncapturableError: it has no such graph, or that answers otherwise.
    """

    def __init__(self, model: nn.Module, probe: Inputs) -> None:
        try:
            captured = capture_once(model.train(), probe)
        finally:
            model.eval()
        program = compile_program(captured, [])
        with_fast_dropout(program.shared)
        self.program, self.inputs = program.shared, program.inputs
        with torch.inference_mode():
            expected: torch.Tensor = model(**probe).logits.float()
            try:
                found = self(probe, training=False).float()
            except Exception as problem:  # whatever a rewritten graph makes Torch raise
                raise UncapturableError(f"its graph does not run: {problem}") from problem
        scale = float(expected.abs().nan_to_num().max().clamp(min=1.0))
        tolerance = scale * (1e-4 if next(model.parameters()).dtype == torch.float32 else 5e-2)
        if not torch.allclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True):
            raise UncapturableError("its graph answers otherwise")

    def takes(self, inputs: Inputs) -> bool:
        """Whether a batch is one that the graph was captured for: two rows and more, of two tokens and more."""
        rows, tokens = inputs["input_ids"].shape
        return rows > 1 and tokens > 1 and inputs.keys() == set(self.inputs)

    def __call__(self, inputs: Inputs, *, training: bool) -> torch.Tensor:
        """Logits `[B, C_m]`, in the model's type; dropout draws from Torch's default generator."""
        rows, tokens = inputs["input_ids"].shape
        (logits,) = self.program(training, rows, tokens, *(inputs[name] for name in self.inputs))
        answer: torch.Tensor = logits
        return answer


def with_fast_dropout(program: fx.GraphModule) -> None:
    """Make dropout and attention ask a new first argument, `training`, and be those of `dropout_kernels`.

    Args:
        program: of a model that was captured in train mode.

    Raises:
        UncapturableError: it draws in a way that nobody could turn off.
    """
    graph = program.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        training = graph.placeholder("training")
    for node in graph.nodes:
        name = op_name(node)
        if name == "dropout":
            node.target, node.args, node.kwargs = dropout, (*node.args[:2], training), {}
        elif name == "scaled_dot_product_attention":
            node.target, node.kwargs = attention, {**node.kwargs, "training": training}
            _positional(node)
        elif name in ("native_dropout", "bernoulli", "rand", "rand_like"):
            raise UncapturableError(f"it draws by {name}")
    program.recompile()


def _positional(node: fx.Node) -> None:
    """Torch names the third and fourth arguments otherwise than `dropout_kernels.attention`."""
    kwargs: dict[str, Any] = dict(node.kwargs)
    args = list(node.args)
    for place, (name, default) in enumerate((("attn_mask", None), ("dropout_p", 0.0)), start=3):
        if name in kwargs or len(args) <= place:
            given = kwargs.pop(name, default)
            if len(args) <= place:
                args.append(given)
    node.args, node.kwargs = tuple(args), kwargs
