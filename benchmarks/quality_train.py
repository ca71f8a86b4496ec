"""Training: a table of texts, targets and weights becomes a classifier's folder, by the product's own loop.

Teachers and the upper bound learn from one-hot targets, students from what a method makes of the teachers. Knows the
loop and the cache folder; knows no methods.

Shapes: N rows, C labels of the classifier.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from muki_ray.config import StudentConfig, TrainingConfig
from muki_ray.store import Folder, part_name
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from muki_ray.student.model import inspect_student
from muki_ray.student.solo import Solo
from muki_ray.teachers.evidence import float_lists

# the one file that a trained folder has beside the model's own; the product does not count it to the model
RESULTS = "train_results.json"


@dataclass(frozen=True)
class Trained:
    """Where it lies, the best held-out loss, and the seconds that training took."""

    folder: Path
    held_out_kl: float
    seconds: float


def recipe(epochs: int, learning_rate: float, seed: int) -> TrainingConfig:
    """The product's defaults, but so many epochs at that rate, all of them."""
    return TrainingConfig(epochs=epochs, learning_rate=learning_rate, seed=seed, patience=None)


def gold_table(texts: Sequence[str], places_N: NDArray[np.int64], size: int) -> pa.Table:
    """One-hot targets and weight 1; rows without a place (-1) are left out."""
    known = np.flatnonzero(places_N >= 0)
    return pa.table(
        {
            "row_id": known,
            "text": [texts[i] for i in known],
            "target": float_lists(np.eye(size, dtype=np.float32)[places_N[known]]),
            "weight": np.ones(len(known), np.float32),
        }
    )


def held_out(table: pa.Table, training: TrainingConfig) -> NDArray[np.bool_]:
    """Rows of the table that `train` does not train on, `[N]`."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Folder(scratch)
        folder.write_table(part_name(0), table.select(["row_id"]))
        split = plan_split(folder, [len(table)], training.validation, training.seed)
    return split.held_out(table["row_id"].to_numpy())


def train(
    table: pa.Table,
    labels: Sequence[str],
    base: Path,
    max_length: int,
    training: TrainingConfig,
    target: Path,
    *,
    normalize: bool = False,
    objective: Any = None,
) -> Trained:
    """Train `base` on the table and write `target`, unless it is there.

    Args:
        table: row_id, text, target `[C]`, weight.
        normalize: divide weights by their mean.
        objective: of the product's loop; None: the weighted KL.
    """
    if (target / RESULTS).is_file():
        return Trained(target, **json.loads((target / RESULTS).read_text()))
    began = time.perf_counter()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        folder = Folder(str(scratch / "supervision"))
        folder.write_table(part_name(0), table)
        split = plan_split(folder, [len(table)], training.validation, training.seed)
        scale = float(np.mean(table["weight"].to_numpy())) if normalize else 1.0
        world = Solo(scratch / "best")
        job = TrainingJob(
            inspect_student(StudentConfig(model=str(base), max_length=max_length), max_length),
            tuple(labels),
            training,
            Supervision(folder, (len(table),), split, scale),
            torch.get_num_threads(),
            **({} if objective is None else {"objective": objective}),
        )
        run(job, world)
        (scratch / "best" / STATE_FILE).unlink()
        results = {"held_out_kl": world.best, "seconds": time.perf_counter() - began}
        (scratch / "best" / RESULTS).write_text(json.dumps(results))
        shutil.rmtree(target, ignore_errors=True)
        (scratch / "best").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Trained(target, **results)
