"""Training in this very process, without Ray: for small jobs, examples and benchmarks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Solo:
    """A `World` of one worker: keeps the best checkpoint in `folder`; never resumes.

    Attributes:
        folder: its own; what lies there is replaced.
        on_progress: called with steps done, steps in all and metrics.
    """

    folder: Path
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None
    device: torch.device = field(
        default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    rank: int = 0
    size: int = 1
    best: float = float("inf")

    def wrap(self, model: Any) -> Any:
        """One worker has nobody to average with."""
        return model

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over one worker."""
        return values

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Keep the checkpoint if its held-out KL is the best so far."""
        if metrics["held_out_kl"] < self.best:
            self.best = metrics["held_out_kl"]
            fresh = self.folder.with_name(f".{self.folder.name}.new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
            save(fresh)
            shutil.rmtree(self.folder, ignore_errors=True)
            fresh.rename(self.folder)

    def resume(self) -> Path | None:
        """Always from the start."""
        return None

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Pass progress on."""
        if self.on_progress is not None:
            self.on_progress(done, total, metrics)
