"""What the student minimises: `Objective`, as data that any process may hold, and `Loss`, built from it on a worker.

The default is the weighted KL of MUKI section 2.2.2. The feature baselines also bring teachers that read along, and
modules that are trained beside the student and thrown away. Knows Torch, and teachers for the feature baselines.

Shapes: B rows of a micro-batch, C union labels, W columns of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from muki_ray.baselines.cfl import Cfl
from muki_ray.baselines.dfa import Dfa
from muki_ray.baselines.features import FeatureNetwork, FeatureReader, FeatureTeacher, layer_widths
from muki_ray.baselines.targets import blocks
from muki_ray.baselines.uhc import uhc_rows
from muki_ray.config import TrainingConfig
from muki_ray.config_method import AnyMethod, BaselineMethod, CflMethod, DfaMethod, UhcMethod
from muki_ray.labels import LabelSpace
from muki_ray.student.data import Batch
from muki_ray.student.losses import kl_rows, weighted_kl
from muki_ray.teachers.loading import load
from muki_ray.teachers.spec import TeacherSpec

Rows = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Loss:
    """What the training loop calls.

    Args:
        rows: the divergence of each row, `[B]`, from logits `[B, C]` and targets `[B, W]`. The held-out rows are
            judged by it alone.

    Attributes:
        network: what is trained and called, where that is more than the student; None: the student.
        heads: the modules beside the student; without parameters where there are none.
    """

    network: FeatureNetwork | None = None

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.heads = nn.Module()

    def prepare(self, batch: Batch) -> Batch:
        """The batch with what this loss needs beside it; called on the thread that reads ahead."""
        return batch

    def more(self, batch: Batch, number: int, weights: torch.Tensor) -> dict[str, Any]:
        """What the network is called with besides the inputs of the batch's micro-batch of that number."""
        return {}

    def total(self, answer: Any, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Loss of a micro-batch, summed over its rows with their weights `[B]`; `answer` is the network's."""
        return weighted_kl(answer, targets, weights, self.rows)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters of the heads, as the optimizer takes them."""
        return []


class Objective(Protocol):
    """What the student minimises; cheap to pickle."""

    @property
    def content(self) -> dict[str, Any]:
        """Everything that changes the result, as JSON can hold it."""

    def build(self, student: nn.Module, probe: Mapping[str, torch.Tensor], training: TrainingConfig) -> Loss:
        """The loss of this student.

        Args:
            student: on its device.
            probe: a tokenized batch there.
        """


@dataclass(frozen=True)
class WeightedKl:
    """KL from the target over the union to the student, row by row, weighted; times `T^2`."""

    temperature: float = 1.0

    @property
    def content(self) -> dict[str, Any]:
        """Kind and temperature."""
        return {"kind": "kl", **asdict(self)}

    def build(self, student: nn.Module, probe: Mapping[str, torch.Tensor], training: TrainingConfig) -> Loss:
        """Without anything beside the student."""
        return Loss(partial(kl_rows, temperature=self.temperature))


@dataclass(frozen=True)
class BlockKl:
    """UHC: KL within each teacher's labels. `blocks`: places of those in the union, per teacher."""

    blocks: tuple[tuple[int, ...], ...]
    temperature: float = 1.0

    @property
    def content(self) -> dict[str, Any]:
        """Kind, blocks and temperature."""
        return {"kind": "blocks", **asdict(self)}

    def build(self, student: nn.Module, probe: Mapping[str, torch.Tensor], training: TrainingConfig) -> Loss:
        """The blocks go to the student's device."""
        places = [torch.tensor(block, device=_device(student)) for block in self.blocks]
        return Loss(partial(uhc_rows, blocks=places, temperature=self.temperature))


@dataclass(frozen=True)
class FeatureKd:
    """Vanilla distillation, and the features of teachers that read along (`baselines/dfa.py`, `baselines/cfl.py`).

    `teachers`: with their dtype resolved, if the same numbers are wanted on every machine.
    """

    method: DfaMethod | CflMethod
    teachers: tuple[TeacherSpec, ...]

    @property
    def content(self) -> dict[str, Any]:
        """Settings and teachers."""
        return {**self.method.model_dump(mode="json"), "teachers": [t.fingerprint for t in self.teachers]}

    def build(self, student: nn.Module, probe: Mapping[str, torch.Tensor], training: TrainingConfig) -> Loss:
        """Loads the teachers beside the student; draws the heads from `training.seed`, alike on every worker.

        Raises:
            TeacherError: a teacher cannot be loaded, or is not what was inspected.
            ConfigError: a model gives no hidden states.
        """
        device = _device(student)
        teachers = [FeatureTeacher(load(spec, str(device))) for spec in self.teachers]
        own, theirs = layer_widths(student, probe, "the student"), [one.widths() for one in teachers]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            heads = (
                Cfl(own[-1], [widths[-1] for widths in theirs], self.method.width)
                if isinstance(self.method, CflMethod)
                else Dfa(own, theirs)
            )
        layers = heads.reads() if isinstance(heads, Dfa) else [[len(widths) - 1] for widths in theirs]
        network = FeatureNetwork(student, heads.to(device))
        return FeatureLoss(network, FeatureReader(teachers, layers), self.method, training)


class FeatureLoss(Loss):
    """Vanilla distillation plus what the heads say of the features."""

    network: FeatureNetwork

    def __init__(
        self,
        network: FeatureNetwork,
        reader: FeatureReader,
        method: DfaMethod | CflMethod,
        training: TrainingConfig,
    ) -> None:
        super().__init__(partial(kl_rows, temperature=method.temperature))
        self.network, self.heads, self.reader = network, network.heads, reader
        self.method, self.training = method, training

    def prepare(self, batch: Batch) -> Batch:
        """With what each micro-batch's features are made of: kept ones, and every teacher's own tokens for the rest."""
        size = self.training.micro_batch_size or len(batch.texts)
        pin = torch.cuda.is_available()
        beside = []
        for start in range(0, len(batch.texts), size):
            part = slice(start, start + size)
            reading = self.reader.prepare(
                batch.texts[part], None if batch.pairs is None else batch.pairs[part]
            )
            beside.append(reading.pinned() if pin else reading)
        return replace(batch, beside=beside)

    def more(self, batch: Batch, number: int, weights: torch.Tensor) -> dict[str, Any]:
        """The teachers' features: `features[m][l]` is `[B, H_l]`."""
        return {"features": self.reader(batch.beside[number]), "weights": weights}

    def total(self, answer: Any, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Distillation and features, one to one as in the release."""
        logits, of_features = answer
        summed: torch.Tensor = super().total(logits, targets, weights) + of_features
        return summed

    def groups(self) -> list[dict[str, Any]]:
        """All heads at their own rate, without weight decay."""
        return [
            {
                "params": list(self.heads.parameters()),
                "lr": self.method.head_learning_rate,
                "weight_decay": 0.0,
            }
        ]


def objective_of(method: AnyMethod, space: LabelSpace, teachers: Sequence[TeacherSpec]) -> Objective:
    """The objective that goes with a method's supervision.

    Args:
        space: whose blocks `uhc` compares.
        teachers: who read along where the method compares features.
    """
    if isinstance(method, UhcMethod):
        return BlockKl(blocks(space.index), method.temperature)
    if isinstance(method, (DfaMethod, CflMethod)):
        return FeatureKd(method, tuple(teachers))
    return WeightedKl(method.temperature if isinstance(method, BaselineMethod) else 1.0)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
