"""The training loop: supervision in, checkpoints out. One process of any number.

Knows Torch; knows Ray only through `World`, so that it also runs in a plain process. What is minimised is the job's
`Objective`. Chooses the checkpoint by the KL on held-out supervision: no label is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from muki_ray.allocator import keep_freed_memory
from muki_ray.config import TrainingConfig
from muki_ray.errors import StudentError
from muki_ray.student.ahead import ahead
from muki_ray.student.data import Batch, Encoded, Supervision
from muki_ray.student.lean import LeanStudent
from muki_ray.student.losses import weighted_kl
from muki_ray.student.model import StudentSpec, build_student
from muki_ray.student.objectives import Objective, WeightedKl
from muki_ray.teachers.loading import resolve_dtype

# of a checkpoint, what is not the model: what resuming needs, and the epoch's metrics where nobody else keeps them
STATE_FILE, METRICS_FILE = "training_state.pt", "metrics.json"
# held-out KL of a checkpoint within an epoch, which nobody has judged: finite, because JSON is
UNJUDGED = 1e30
# steps between two looks at the loss: each makes a GPU wait for all that it was given
_LOOK = 16
# apart from what seeds epochs and workers
_SEGMENT = 1_000_003
# traced to capture the student's forward pass; two rows of unequal length, so that padding is seen
_PROBE = ["one short text", "another text that is somewhat longer than the first one"]

# padded inputs, targets `[B, C]` (or what columns the objective has) and weights `[B]` of one forward
MicroBatch: TypeAlias = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]


class World(Protocol):
    """What a worker knows of the others."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, model: Any) -> Any:
        """The model, made to average gradients over workers."""

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all workers."""

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Hand over an epoch's metrics and its checkpoint; `save` writes it, on rank 0.

        `finished` is 1 in the last epoch's metrics, be it the last wanted or the early stop. `held_out_kl` is `UNJUDGED`
        within an epoch; `epoch` then counts the whole ones.
        """

    def resume(self) -> Path | None:
        """Folder of the latest checkpoint, if there is one."""

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Optimizer steps done; called on rank 0."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs; cheap to pickle."""

    student: StudentSpec
    labels: tuple[str, ...]
    training: TrainingConfig
    supervision: Supervision
    threads: int
    objective: Objective = field(default_factory=WeightedKl)


def run(job: TrainingJob, world: World) -> None:
    """Train to the end, or to the early stop, from the latest checkpoint if there is one.

    Raises:
        StudentError: the training diverged or does not fit the GPU's memory, or the base model or the supervision is
            not what it was.
    """
    try:
        _run(job, world)
    except torch.OutOfMemoryError as problem:
        rows = job.training.micro_batch_size or -(-job.training.batch_size // world.size)
        raise StudentError(
            f"training {rows} rows at once does not fit the GPU's memory ({str(problem).partition('. ')[0]}); "
            "set training.micro_batch_size to less (the steps stay the same), lower student.max_length, or use a larger GPU"
        ) from problem


def _run(job: TrainingJob, world: World) -> None:
    settings = job.training
    torch.set_num_threads(job.threads)
    keep_freed_memory()
    data = replace(job.supervision, rank=world.rank, world=world.size)
    model, tokenizer = build_student(job.student, list(job.labels), settings.seed, settings.dropout)
    model.to(world.device)
    steps = data.steps(settings.batch_size)
    trainer = _Trainer(model, tokenizer, job, world, total_steps=steps * settings.epochs)
    start, best, bad, begun = trainer.restore()
    held_out_batches: list[Batch] = []
    for epoch in range(start, settings.epochs):
        if _patience_ended(settings, bad):
            break
        batches = data.train(epoch, settings.batch_size, settings.seed, trainer.encode, begun.steps)
        loss = trainer.epoch(batches, steps, epoch, begun, {"best": best, "bad": bad})
        begun = Begun()
        # read once: the held-out rows are few, the parts that they lie in are not. And late: a stream has them at its end
        held_out_batches = held_out_batches or list(data.held_out(settings.batch_size * 2, trainer.encode))
        held_out = trainer.held_out_kl(held_out_batches)
        if not math.isfinite(held_out):
            raise trainer.diverged(epoch, f"held-out KL {held_out}")
        improved = held_out < best
        best, bad = (held_out, 0) if improved else (best, bad + 1)
        finished = epoch + 1 == settings.epochs or _patience_ended(settings, bad)
        state = {"epoch": epoch + 1, "best": best, "bad": bad}
        metrics = {
            "epoch": epoch + 1,
            "train_kl": loss,
            "held_out_kl": held_out,
            "step": steps * (epoch + 1),
            "finished": float(finished),
        }
        world.report(metrics, lambda folder, state=state: trainer.save(folder, state))  # type: ignore[misc]


def _patience_ended(settings: TrainingConfig, bad: int) -> bool:
    return settings.patience is not None and bad >= settings.patience


@dataclass(frozen=True)
class Begun:
    """What was done of an epoch: steps, and the summed loss and rows of all workers."""

    steps: int = 0
    loss: float = 0.0
    rows: float = 0.0

    def mean(self, loss: float, rows: float) -> float:
        """Mean loss with so much more."""
        return (self.loss + loss) / max(1.0, self.rows + rows)


class _Trainer:
    """Model, optimizer and schedule of one worker."""

    def __init__(self, model: Any, tokenizer: Any, job: TrainingJob, world: World, total_steps: int) -> None:
        self.plain, self.tokenizer, self.job, self.world = model, tokenizer, job, world
        probe = self.tokenizer(_PROBE, padding=True, return_tensors="pt").to(world.device)
        self.loss = job.objective.build(model, probe, job.training)
        # a loss that looks inside the student takes it as it is, with what is trained beside it
        self.lean = self.loss.network or LeanStudent(model, probe, alone=world.size == 1)
        self.model = world.wrap(self.lean)
        self.settings = job.training
        self.total_steps = total_steps
        decay = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
        plain = [p for n, p in model.named_parameters() if p.requires_grad and p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": self.settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
                *self.loss.groups(),
            ],
            lr=self.settings.learning_rate,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)
        kind = "cuda" if world.device.type == "cuda" else "cpu"
        wanted = _precision(self.settings.precision, kind)
        self.autocast = partial(torch.autocast, kind, dtype=wanted, enabled=wanted != torch.float32)
        self.scaler = torch.amp.GradScaler(kind, enabled=wanted == torch.float16)

    def _factor(self, step: int) -> float:
        """Warm-up, then decay to 0 at the last step."""
        warm = math.ceil(self.settings.warmup * self.total_steps)
        if step < warm:
            return (step + 1) / (warm + 1)
        share = (step - warm) / max(1, self.total_steps - warm)
        return {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[
            self.settings.schedule
        ]

    def epoch(
        self,
        batches: Iterable[Batch],
        steps: int,
        epoch: int,
        begun: Begun = Begun(),
        state: dict[str, Any] | None = None,
    ) -> float:
        """One pass; returns the mean loss of the training rows: their weighted KL, unless the objective adds to it.

        Args:
            batches: those that are left of the epoch.
            begun: what an earlier process did of it.
            state: what else a checkpoint has to keep.

        Raises:
            StudentError: the loss is no number, when a checkpoint is due.
        """
        self.model.train()
        self._seed(epoch, begun)
        every, workers = self.settings.steps_per_checkpoint, self.world.size
        loss: torch.Tensor | float = 0.0
        rows, seen = 0.0, 0.0
        with closing(ahead(map(self.loss.prepare, batches), self._tokenized)) as stream:
            for done, (batch, micro) in enumerate(stream, begun.steps + 1):
                rate = float(self.schedule.get_last_lr()[0])
                loss = loss + self._step(batch, micro)
                # this worker's share of the rows, so that all shares add up to the rows of the global batch
                rows += batch.rows / workers
                if self.world.rank == 0:
                    if (done - 1) % _LOOK == 0 or done == steps:
                        seen = begun.mean(float(loss) * workers, rows * workers)
                    metrics = {"train_kl": seen, "learning_rate": rate}
                    self.world.progress(epoch * steps + done, self.total_steps, metrics)
                if every is not None and done % every == 0 and done < steps:
                    begun, loss, rows = self._summed(done, begun, loss, rows), 0.0, 0.0
                    self._checkpoint(epoch, epoch * steps + done, begun, state or {})
                    self._seed(epoch, begun)
        return self._summed(steps, begun, loss, rows).mean(0.0, 0.0)

    def _seed(self, epoch: int, begun: Begun) -> None:
        """Of the dropout: whoever goes on from a checkpoint draws what the interrupted process would have drawn."""
        settings = self.settings
        number = begun.steps // (settings.steps_per_checkpoint or 1)
        torch.manual_seed(settings.seed + 1000 * (epoch + 1) + self.world.rank + _SEGMENT * number)

    def _summed(self, steps: int, begun: Begun, loss: torch.Tensor | float, rows: float) -> Begun:
        """What was done, over all workers, with this worker's newest share."""
        total = self.world.total(torch.tensor([float(loss), rows]).to(self.world.device)).cpu()
        return Begun(steps, begun.loss + float(total[0]), begun.rows + float(total[1]))

    def _checkpoint(self, epoch: int, step: int, begun: Begun, state: dict[str, Any]) -> None:
        """Within an epoch."""
        mean = begun.mean(0.0, 0.0)
        if not math.isfinite(mean):
            raise self.diverged(epoch, f"train KL {mean}")
        metrics = {"epoch": epoch, "train_kl": mean, "held_out_kl": UNJUDGED, "step": step, "finished": 0.0}
        kept = {**state, "epoch": epoch, "begun": asdict(begun)}
        self.world.report(metrics, lambda folder: self.save(folder, kept))
        self.model.train()

    def diverged(self, epoch: int, what: str) -> StudentError:
        """To be raised."""
        rate = self.settings.learning_rate
        return StudentError(
            f"training diverged in epoch {epoch + 1} ({what}); lower training.learning_rate ({rate:g})"
        )

    def _step(self, batch: Batch, micro: list[MicroBatch]) -> torch.Tensor:
        """One optimizer step over the micro-batches; returns this worker's summed loss, on its device."""
        done = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for i, parts in enumerate(micro):
            inputs, targets, weights = self._placed(parts)
            more = self.loss.more(batch, i, weights)
            accumulating = i + 1 < len(micro) and hasattr(self.model, "no_sync")
            with self.model.no_sync() if accumulating else nullcontext():
                with self.autocast():
                    answer = self.model(**inputs, **more)
                loss = self.loss.total(answer, targets, weights)
                # gradients are averaged over workers: times their number, over the rows of all
                self.scaler.scale(loss * self.world.size / batch.rows).backward()
            done += loss.detach()
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.lean.zero_grad()
        return done

    def _clip(self) -> None:
        """Bound the norm of the gradient.

        Where no scaler is at work the optimizer divides by what the norm exceeds, which saves a pass over all
        gradients; the result is that of `clip_grad_norm_`.
        """
        bound = self.settings.clip_norm
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), bound)
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.grad_scale = ((norm + 1e-6) / bound).clamp(min=1.0)  # type: ignore[attr-defined]

    def _placed(self, micro: MicroBatch) -> MicroBatch:
        """On this worker's device."""
        inputs, targets, weights = micro
        place = partial(torch.Tensor.to, device=self.world.device, non_blocking=True)
        return {name: place(value) for name, value in inputs.items()}, place(targets), place(weights)

    def held_out_kl(self, batches: Iterable[Batch]) -> float:
        """Weighted mean KL over the held-out rows of all workers."""
        self.model.eval()
        total = torch.zeros(2, device=self.world.device)
        with torch.inference_mode(), closing(ahead(batches, self._tokenized)) as stream:
            for _batch, micro in stream:
                for inputs, targets, weights in map(self._placed, micro):
                    with self.autocast():
                        logits = self.lean(**inputs)
                    kl = weighted_kl(logits, targets, weights, self.loss.rows)
                    total += torch.stack([kl, weights.sum()])
        total = self.world.total(total)
        return float(total[0] / total[1].clamp(min=1e-12))

    def encode(self, texts: list[str], pairs: list[str] | None) -> Encoded:
        """Token ids of rows, cut at the student's length, not padded."""
        return dict(
            self.tokenizer(
                texts, pairs, truncation=True, max_length=self.job.student.max_length, padding=False
            )
        )

    def _tokenized(self, batch: Batch) -> list[MicroBatch]:
        """Micro-batches of padded inputs, targets and weights."""
        encoded = batch.encoded or self.encode(batch.texts, batch.pairs)
        size = self.settings.micro_batch_size or len(batch.texts)
        pin = torch.cuda.is_available()  # a pinned batch is copied to the GPU while it works
        result = []
        for start in range(0, len(batch.texts), size):
            part = slice(start, start + size)
            rows = {name: values[part] for name, values in encoded.items()}
            inputs = dict(self.tokenizer.pad(rows, padding="longest", return_tensors="pt"))
            targets, weights = torch.from_numpy(batch.targets[part]), torch.from_numpy(batch.weights[part])
            if pin:
                inputs = {name: value.pin_memory() for name, value in inputs.items()}
                targets, weights = targets.pin_memory(), weights.pin_memory()
            result.append((inputs, targets, weights))
        return result

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """A checkpoint: a Hugging Face folder, and what resuming needs."""
        self.plain.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        torch.save({**state, "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                    "scaler": self.scaler.state_dict(), "heads": self.loss.heads.state_dict()},
                   folder / STATE_FILE)  # fmt: skip

    def restore(self) -> tuple[int, float, int, Begun]:
        """Next epoch, best held-out KL, epochs without a better one, and what is done of the next one."""
        folder = self.world.resume()
        if folder is None:
            return 0, math.inf, 0, Begun()
        # read the way it was written: some architectures name their tensors differently in files
        saved = type(self.plain).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        self.plain.load_state_dict(saved.state_dict())
        state = torch.load(folder / STATE_FILE, map_location=self.world.device, weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.loss.heads.load_state_dict(state["heads"])
        return int(state["epoch"]), float(state["best"]), int(state["bad"]), Begun(**state.get("begun", {}))


def _precision(wanted: str, kind: str) -> torch.dtype:
    """Type of the autocast; `auto` is bfloat16 where the hardware multiplies it fast."""
    resolved: torch.dtype = getattr(torch, resolve_dtype(wanted, kind == "cuda"))  # type: ignore[arg-type]
    if resolved == torch.float16 and kind == "cpu":
        raise StudentError("training.precision: float16 needs a GPU; use bfloat16 or float32")
    return resolved
