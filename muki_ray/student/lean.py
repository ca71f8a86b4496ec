"""The student's forward and backward without what its answer does not need.

The head reads one token, so most of the last layer is waste: the forward pass is captured as a graph and rewritten by
the same rules as the teachers' (`teachers/reading.py`), with the parameters as inputs, so that gradients flow to them
and they stay the model's own. On a CPU slow operations are replaced (`dropout_kernels.py`, `kernels.py`). A model that cannot be captured, or
whose graph answers otherwise, runs as it is. Knows graphs and Torch; knows no data, no optimizer.

Shapes: B rows of a batch, T tokens, C union labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from muki_ray.student.kernels import EmbeddingGradient
from muki_ray.teachers.capture import Captured, UncapturableError, op_name
from muki_ray.teachers.capture_cache import capture_once
from muki_ray.teachers.program import compile_program
from muki_ray.teachers.train_mode import with_fast_dropout

logger = logging.getLogger(__name__)
aten = torch.ops.aten


class LeanStudent(nn.Module):
    """`model`, called with a tokenized batch; returns logits `[B, C]`. Shares its parameters.

    Args:
        model: an `AutoModelForSequenceClassification` on its device.
        probe: a tokenized batch of at least two rows of unequal length, on that device.
        alone: whether nobody else averages these gradients: only then may they stay in place between steps.

    Attributes:
        lean: whether the graph is in use.
    """

    def __init__(self, model: nn.Module, probe: Mapping[str, torch.Tensor], *, alone: bool) -> None:
        super().__init__()
        self.model = model
        self.program: fx.GraphModule | None = None
        self.parameters_read: list[nn.Parameter] = []
        self.inputs: tuple[str, ...] = ()
        self.kept: list[EmbeddingGradient] = []
        mode = model.training
        try:
            self._prepare(probe)
            if alone and next(model.parameters()).device.type == "cpu":
                self._keep_embedding_gradients()
        except UncapturableError as reason:
            self.program = None
            logger.info("the student trains by its own code: %s", reason)
        model.train(mode)

    @property
    def lean(self) -> bool:
        """Whether the graph is in use."""
        return self.program is not None

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]`; dropout is on in train mode."""
        rows, tokens = inputs["input_ids"].shape
        # a graph is captured for two rows and more
        if self.program is None or rows < 2 or tokens < 2 or inputs.keys() != set(self.inputs):
            for one in self.kept:
                one.whole = True  # the model's own lookup says not which rows it reads
            plain: torch.Tensor = self.model(**inputs).logits
            return plain
        values = [inputs[name] for name in self.inputs]
        (logits,) = self.program(self.training, rows, tokens, *values, *self.parameters_read)
        return logits

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Before the next step. Gradients that are kept are cleared, the others dropped."""
        kept = {id(one.weight) for one in self.kept}
        for parameter in self.parameters():
            if id(parameter) not in kept:
                parameter.grad = None
        for one in self.kept:
            one.clear()

    # -- set-up --------------------------------------------------------------------------------------

    def _prepare(self, probe: Mapping[str, torch.Tensor]) -> None:
        self.model.train()  # in eval mode the graph would have no dropout
        captured, parameters = _parameters_as_inputs(capture_once(self.model, probe), self.model)
        self.inputs, self.parameters_read = tuple(probe), parameters
        program = compile_program(captured, []).shared
        with_fast_dropout(program)
        self.program = program
        self.eval()
        expected = self._answer(self.model, probe)
        try:
            found = self._answer(self, probe)
        except Exception as problem:  # whatever a rewritten graph makes Torch raise
            raise UncapturableError(f"its graph does not run: {problem}") from problem
        for one, other in zip(expected, found, strict=True):
            if (one is None) != (other is None):
                raise UncapturableError("its graph leaves out parameters")
            if one is None or other is None:
                continue
            scale = float(one.abs().max().clamp(min=1.0))
            if not torch.allclose(one.float(), other.float(), rtol=0.0, atol=1e-4 * scale):
                raise UncapturableError("its graph answers otherwise")

    def _answer(self, module: nn.Module, probe: Mapping[str, torch.Tensor]) -> list[torch.Tensor | None]:
        """Logits without dropout, and the gradient of every parameter."""
        answer = module(**probe)
        logits: torch.Tensor = answer if isinstance(answer, torch.Tensor) else answer.logits
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not logits.requires_grad:
            return [logits, *[None] * len(wanted)]
        gradients = torch.autograd.grad(logits.square().sum(), wanted, allow_unused=True)
        return [logits.detach(), *gradients]

    def _keep_embedding_gradients(self) -> None:
        """For the embeddings that are read once, and nowhere else."""
        assert self.program is not None
        graph = self.program.graph
        places = [node for node in graph.nodes if node.op == "placeholder"][-len(self.parameters_read) :]
        for node, parameter in zip(places, self.parameters_read, strict=True):
            (user,) = node.users if len(node.users) == 1 else (None,)
            if user is None or op_name(user) != "embedding" or not parameter.requires_grad:
                continue
            padding, *others = (*user.args[2:], *user.kwargs.values()) or (-1,)
            if user.args[0] is node and not any(others):
                self.kept.append(EmbeddingGradient(parameter))
                user.target, user.args, user.kwargs = self.kept[-1].lookup, (*user.args[:2], padding), {}
        self.program.recompile()


def _parameters_as_inputs(captured: Captured, model: nn.Module) -> tuple[Captured, list[nn.Parameter]]:
    """The same graph, fed with its parameters: nothing of them is folded, and autograd sees them."""
    by_storage = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    inputs, constants = dict(captured.inputs), {}
    parameters: list[nn.Parameter] = []
    for node, tensor in captured.constants.items():
        parameter = by_storage.get(tensor.data_ptr())
        if parameter is None or parameter.shape != tensor.shape:
            constants[node] = tensor
        else:
            inputs[f"parameter_{len(parameters)}"] = node
            parameters.append(parameter)
    return replace(captured, inputs=inputs, constants=constants), parameters
