"""Training in the driver's own process: what a run does on a machine of its own, where one worker is all there is.

Ray Train would start a controller, a worker and their helpers, each with its own imports, to distribute nothing. The
loop is the same; so are the name of the run and what a killed run leaves: the same command goes on after the last
epoch that was saved. Knows a local folder; a run that writes to object storage takes Ray Train.

    <storage>/<name>-here/epoch-00002/   a checkpoint and its metrics.json; the latest and the best are kept
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muki_ray.student.loop import METRICS_FILE, TrainingJob, run
from muki_ray.student.train import Trained

_FRESH, _OLD = ".new", ".old"  # an epoch on its way in, and one on its way out


@dataclass
class Here:
    """A `World` of one worker that keeps the latest checkpoint and the best one, and resumes from the latest.

    Attributes:
        folder: where checkpoints lie.
        send: called with a message's kind and content, as `runtime.Messenger.send`.
    """

    folder: Path
    send: Callable[[str, Any], None]
    device: torch.device
    rank: int = 0
    size: int = 1

    def wrap(self, model: Any) -> Any:
        """One worker has nobody to average with."""
        return model

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over one worker."""
        return values

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Save the epoch; a folder that has its name is whole."""
        self.send("epoch", metrics)
        self.tidy()
        fresh = self.folder / _FRESH
        fresh.mkdir(parents=True)
        save(fresh)
        (fresh / METRICS_FILE).write_text(json.dumps(metrics))
        target = self.folder / f"epoch-{int(metrics['epoch']):05d}"
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
        kept = {self._latest(), self._best()}
        for folder in self._epochs():
            if folder not in kept:
                # a folder that is half gone must not be taken for an epoch
                shutil.rmtree(folder.rename(self.folder / _OLD))

    def tidy(self) -> None:
        """Remove what a killed run left half written, or half thrown away."""
        for name in (_FRESH, _OLD):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def resume(self) -> Path | None:
        """The latest checkpoint, which need not be the best."""
        return self._latest()

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Tell who watches."""
        self.send("step", (done, total, metrics))

    def finished(self) -> Trained | None:
        """The best checkpoint, if the training came to its end."""
        latest, best = self._latest(), self._best()
        if latest is None or best is None or not _metrics(latest)["finished"]:
            return None
        return Trained(str(best), _metrics(best))

    def _epochs(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*"))

    def _latest(self) -> Path | None:
        return next(reversed(self._epochs()), None)

    def _best(self) -> Path | None:
        return min(self._epochs(), key=lambda folder: _metrics(folder)["held_out_kl"], default=None)


def _metrics(folder: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((folder / METRICS_FILE).read_text())
    return content


def train_here(
    job: TrainingJob, name: str, storage: str, send: Callable[[str, Any], None], *, cuda: bool
) -> Trained:
    """Train in this process, or go on where an earlier run of the same name stopped.

    Args:
        storage: a local folder.
        send: hears of steps and epochs, on this thread.
        cuda: whether to train on this machine's GPU.

    Raises:
        UserError: the training diverged, or the base model or the supervision is not what it was.
    """
    world = Here(Path(storage) / f"{name}-here", send, torch.device("cuda" if cuda else "cpu"))
    world.tidy()
    if world.finished() is None:
        before = torch.get_num_threads()
        try:
            run(job, world)
        finally:
            torch.set_num_threads(before)
    trained = world.finished()
    assert trained is not None, "the loop's last report says that it has finished"
    return trained
