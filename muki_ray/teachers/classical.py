"""Classical Monte-Carlo dropout: the model in train mode, a new mask for every element and every forward.

The papers' procedure, for their numbers. With dropout in all layers the samples are drawn by the model's graph where it
has one (`train_mode.py`), else by the model itself. Knows Torch modules; knows no tokenizer, no files, no Ray.

Shapes: B rows of a batch, K samples, C_m labels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from muki_ray.errors import TeacherError
from muki_ray.teachers.capture import Captured, UncapturableError
from muki_ray.teachers.hooks import Inputs
from muki_ray.teachers.refusals import no_dropout
from muki_ray.teachers.seeds import derived_seed
from muki_ray.teachers.sites import find_sites
from muki_ray.teachers.train_mode import TrainMode

logger = logging.getLogger(__name__)


class Classical:
    """Draws samples of a model by putting it, or its last layers and its head, in train mode.

    Args:
        captured: the model's graph, if there is one: it says where dropout is to be added to a model that has none.
        layers, rate: as in `config_method.DropoutConfig`; a rate is set on every dropout module of the model.

    Raises:
        TeacherError: it has no dropout, or not that many layers.
    """

    def __init__(
        self, model: nn.Module, probe: Inputs, captured: Captured | None, layers: int | Literal["all"],
        rate: float | None, name: str,
    ) -> None:  # fmt: skip
        self.model = model
        self.added: dict[nn.Module, float] = {}
        stack = encoder_layers(model)
        if layers != "all" and stack is None:
            raise TeacherError(
                f"teacher {name!r}: its layers are not a plain list, so dropout.layers: {layers} has no meaning with masks: "
                "per_element; use layers: all"
            )
        if layers != "all" and stack is not None and layers > len(stack):
            raise TeacherError(
                f"teacher {name!r} has {len(stack)} layers, got dropout.layers: {layers}; use fewer or all"
            )
        first = -1 if layers == "all" or stack is None else len(stack) - layers
        dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
        if rate is not None:
            for module in dropouts:
                module.p = rate
        if not dropouts and rate is not None and captured is not None:
            modules = dict(model.named_modules())
            sites, _ = find_sites(captured, getattr(model.config, "num_hidden_layers", None), rate)
            self.added = {modules[site.name]: rate for site in sites if site.layer >= first}
        if not dropouts and not self.added:
            remedy = "set method.dropout.rate (such as 0.1)" if rate is None else None
            raise no_dropout(name, "it has no dropout modules", remedy)
        if dropouts and not any(module.p > 0 for module in dropouts):
            raise no_dropout(name, "its dropout rates are 0", "set method.dropout.rate (such as 0.1)")
        self.stochastic = self._stochastic(stack, first, probe)
        self.graph = self._graph(probe) if first < 0 and captured is not None and not self.added else None

    def _graph(self, probe: Inputs) -> TrainMode | None:
        try:
            return TrainMode(self.model, probe)
        except UncapturableError as reason:
            logger.info("classical dropout runs by the model's own code: %s", reason)
            return None

    def _stochastic(self, stack: nn.ModuleList | None, first: int, probe: Inputs) -> list[nn.Module]:
        """Modules to put in train mode: all, or the last layers and the dropout that runs after them."""
        if first < 0 or stack is None:
            return list(self.model.modules())
        late: list[nn.Module] = []
        began = False

        def begin(*_: Any) -> None:
            nonlocal began
            began = True

        def note(module: nn.Module, *_: Any) -> None:
            if began:
                late.append(module)

        handles = [stack[first].register_forward_pre_hook(begin)]
        handles += [m.register_forward_hook(note) for m in self.model.modules() if isinstance(m, nn.Dropout)]
        try:
            with torch.inference_mode():
                self.model(**probe)
        finally:
            for handle in handles:
                handle.remove()
        inside = [module for layer in list(stack)[first:] for module in layer.modules()]
        return list(dict.fromkeys([*inside, *late]))

    def logits(self, inputs: Inputs, samples: int, seed_key: Sequence[object]) -> torch.Tensor:
        """The deterministic pass and K samples, `float32 [K+1, B, C_m]`.

        Args:
            seed_key: with the sample's number, what a forward's masks derive from.
        """
        device = next(self.model.parameters()).device
        outputs = [self._forward(inputs, training=False)]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), self._training():
            for k in range(1, samples + 1):
                _seed(device, derived_seed(*seed_key, k))
                outputs.append(self._forward(inputs, training=True))
        return torch.stack(outputs)

    def _forward(self, inputs: Inputs, training: bool) -> torch.Tensor:
        if self.graph is not None and self.graph.takes(inputs):
            return self.graph(inputs, training=training).float()
        logits: torch.Tensor = self.model(**inputs).logits
        return logits.float()

    @contextmanager
    def _training(self) -> Iterator[None]:
        handles = [module.register_forward_hook(_dropped(rate)) for module, rate in self.added.items()]
        try:
            for module in self.stochastic:
                module.training = True
            yield
        finally:
            self.model.eval()
            for handle in handles:
                handle.remove()


def encoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The stack of encoder or decoder layers, or None where it is not one plain list (shared layers, say)."""
    config = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return stacks[0] if len(stacks) == 1 else None


def _dropped(rate: float) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (nn.functional.dropout(output[0], rate, training=True), *output[1:])
        return nn.functional.dropout(output, rate, training=True)

    return hook


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generator of this device only: `torch.manual_seed` would seed every other one, too."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
