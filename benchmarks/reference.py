"""The procedure that the papers' authors released, written plainly, to be measured against.

Scores (MUKI step 1): every row is padded to 128 tokens; one deterministic forward and K forwards with the dropout
modules switched on, in a loop over batches. Training (step 2): every step runs all teachers on its 16 rows,
integrates with the scores of step 1, and takes one AdamW step on the weighted KL. float32 on a CPU, float16
autocast on a GPU, as released.

Nothing slows it down on purpose: rows are tokenized once, before; attention is the library's fused one; no
gradient is kept where none is needed; `best_batch_size` picks the batch. Where the release leaves dropout off by
mistake it is on here; on attention probabilities it is left off in the scores, which makes them faster. Knows
Torch and Transformers, none of the package's own engine.

Shapes: N rows, M teachers, K samples, C union labels, C_m labels of teacher m, B rows of a batch, T = 128 tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

MAX_LENGTH = 128
STEP_ROWS = 16
_BATCH_SIZES = (16, 32, 64)
_BATCH_SIZES_CUDA = (32, 128, 512)

Inputs = dict[str, torch.Tensor]


def load(folder: Path | str, device: torch.device) -> tuple[Any, Any]:
    """A classifier in float32 and eval mode on `device`, and its tokenizer."""
    transformers_logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return model.eval().to(device), AutoTokenizer.from_pretrained(folder)


def tokenized(tokenizer: Any, texts: Sequence[str], max_length: int = MAX_LENGTH) -> Inputs:
    """All rows padded to `max_length`, `[N, T]` each, on the CPU."""
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding="max_length", return_tensors="pt"
    )
    return dict(encoded)


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """float16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda")


# -- step 1: scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """One teacher's word on `N` rows, on the CPU.

    Attributes:
        logits: of the deterministic pass, `[N, C_m]`.
        mc_probs: mean softmax over the K samples, `[N, C_m]`; with K = 0 the softmax of `logits`.
        scores: `1 - H(mc_probs) / log C_m`, `[N]`.
    """

    logits: torch.Tensor
    mc_probs: torch.Tensor
    scores: torch.Tensor


@torch.inference_mode()
def mc_dropout(model: Any, inputs: Inputs, samples: int, batch_size: int) -> Scored:
    """K + 1 forwards of every batch.

    Args:
        model: in eval mode on its device; its dropout modules are switched on for the K samples.
        inputs: see `tokenized`.
        samples: K.
    """
    device = next(model.parameters()).device
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    logits, means = [], []
    model.eval()
    for start in range(0, len(inputs["input_ids"]), batch_size):
        batch = {name: values[start : start + batch_size].to(device) for name, values in inputs.items()}
        with autocast(device):
            plain = model(**batch).logits.float()
            for module in dropouts:
                module.train()
            total = torch.zeros_like(plain)
            for _ in range(samples):
                total += model(**batch).logits.float().softmax(-1)
            for module in dropouts:
                module.eval()
        logits.append(plain)
        means.append(total / samples if samples else plain.softmax(-1))
    z, p = torch.cat(logits).cpu(), torch.cat(means).cpu()
    return Scored(z, p, 1.0 - torch.special.entr(p).sum(-1) / math.log(p.shape[-1]))


def best_batch_size(model: Any, inputs: Inputs, sizes: Sequence[int] | None = None) -> int:
    """The batch that suits the procedure here: each is tried once, warm, on two forwards of the same rows."""
    device = next(model.parameters()).device
    sizes = sizes or (_BATCH_SIZES_CUDA if device.type == "cuda" else _BATCH_SIZES)
    rows = {name: values[: max(sizes)] for name, values in inputs.items()}
    mc_dropout(model, {name: values[: min(sizes)] for name, values in rows.items()}, 1, min(sizes))  # warm
    seconds = {}
    for size in sizes:
        began = time.perf_counter()
        mc_dropout(model, rows, 1, size)
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=lambda size: seconds[size])


# -- step 2: the student ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """Integration and optimizer; the defaults are the release's."""

    hard: bool = False
    tau: float = 0.2
    margin: bool = True
    learning_rate: float = 2e-5
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.0
    clip_norm: float = 1.0


class StudentTrainer:
    """The released training step.

    Args:
        student: over the union, on its device.
        teachers: models on the same device, each with the places of its labels in the union.
        labels: C.
        total_steps: of the whole training, for the schedule: linear, after a warm-up.
    """

    def __init__(
        self,
        student: Any,
        teachers: Sequence[tuple[Any, Sequence[int]]],
        labels: int,
        total_steps: int,
        method: Method | None = None,
    ) -> None:
        self.student, self.labels = student.train(), labels
        self.method = method or Method()
        self.device = next(student.parameters()).device
        self.teachers = [
            (model.eval(), torch.tensor(places, device=self.device)) for model, places in teachers
        ]
        self.optimizer = torch.optim.AdamW(
            student.parameters(), lr=self.method.learning_rate, weight_decay=self.method.weight_decay
        )
        warm = math.ceil(self.method.warmup * total_steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: (
                step / warm if step < warm else max(0.0, (total_steps - step) / max(1, total_steps - warm))
            ),
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")

    def step(self, inputs: Inputs, scores_BM: torch.Tensor) -> float:
        """One step on B rows; returns the loss.

        Args:
            inputs: padded rows, `[B, T]`, in the one tokenizer that teachers and student share.
            scores_BM: of step 1, higher is better.
        """
        inputs = {name: values.to(self.device) for name, values in inputs.items()}
        scores_BM = scores_BM.to(self.device)
        with autocast(self.device):
            target = self._target(inputs, scores_BM)
            log_q = self.student(**inputs).logits.float().log_softmax(-1)
        rows = (torch.special.xlogy(target, target) - target * log_q).sum(-1)
        loss = (self._weights(scores_BM) * rows).mean()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.method.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def _target(self, inputs: Inputs, scores_BM: torch.Tensor) -> torch.Tensor:
        """Every teacher runs; `[B, C]`."""
        weights = (scores_BM / self.method.tau).softmax(-1)
        if self.method.hard:
            weights = nn.functional.one_hot(scores_BM.argmax(-1), scores_BM.shape[1]).to(weights)
        target = torch.zeros(len(scores_BM), self.labels, device=self.device)
        for m, (model, places) in enumerate(self.teachers):
            probs = model(**inputs).logits.float().softmax(-1)
            target.index_add_(1, places, weights[:, m : m + 1] * probs)
        return target

    def _weights(self, scores_BM: torch.Tensor) -> torch.Tensor:
        if not self.method.margin or scores_BM.shape[1] == 1:
            return torch.ones(len(scores_BM), device=self.device)
        top = scores_BM.topk(2, dim=-1).values
        return top[:, 0] - top[:, 1] + 1e-6


def train(
    trainer: StudentTrainer, inputs: Inputs, scores_NM: torch.Tensor, epochs: int, seed: int = 0
) -> list[float]:
    """The whole training, rows drawn anew every epoch, 16 a step. Returns the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(scores_NM), generator=generator)
        for take in order.split(STEP_ROWS):
            losses.append(trainer.step({name: v[take] for name, v in inputs.items()}, scores_NM[take]))  # noqa: PERF401
    return losses


def steps(rows: int, epochs: int) -> int:
    """Optimizer steps of `train`."""
    return -(-rows // STEP_ROWS) * epochs


@torch.inference_mode()
def predict(model: Any, inputs: Inputs, batch_size: int = 64) -> torch.Tensor:
    """Most likely label of every row, `[N]`, on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    found = []
    for start in range(0, len(inputs["input_ids"]), batch_size):
        batch = {name: values[start : start + batch_size].to(device) for name, values in inputs.items()}
        with autocast(device):
            found.append(model(**batch).logits.argmax(-1).cpu())
    return torch.cat(found)
