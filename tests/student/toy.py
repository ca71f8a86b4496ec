"""Small supervision folders, and a task that a tiny model can learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from muki_ray.config import StudentConfig, TrainingConfig
from muki_ray.store import Folder, part_name
from muki_ray.student.data import Split, Supervision, plan_split
from muki_ray.student.loop import TrainingJob
from muki_ray.student.model import inspect_student
from tests import tiny

LABELS = ("business", "sport")
_BUSINESS = ["shares", "profit", "bank", "market"]
_SPORT = ["goal", "match", "cup", "team"]


def write(
    location: Path | str,
    parts: Sequence[int],
    texts: Sequence[str] | None = None,
    targets: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    pairs: Sequence[str] | None = None,
    row_ids: Sequence[int] | None = None,
) -> Folder:
    """A supervision folder with parts of so many rows; text `t<row>`, length by row, unless given."""
    rows = sum(parts)
    texts = [f"t{i} " + "x" * (i % 7) for i in range(rows)] if texts is None else texts
    targets = np.full((rows, 2), 0.5, np.float32) if targets is None else targets
    weights = np.ones(rows, np.float32) if weights is None else weights
    row_ids = [3 * i + 1 for i in range(rows)] if row_ids is None else row_ids
    folder = Folder(str(location))
    start = 0
    for shard, count in enumerate(parts):
        part = slice(start, start + count)
        columns = {
            "row_id": pa.array(row_ids[part], pa.int64()),
            "text": pa.array(texts[part], pa.string()),
            "target": pa.array(list(targets[part]), pa.list_(pa.float32())),
            "weight": pa.array(weights[part], pa.float32()),
        }
        if pairs is not None:
            columns["text_pair"] = pa.array(pairs[part], pa.string())
        folder.write_table(part_name(shard), pa.table(columns))
        start += count
    return folder


def supervision(
    folder: Folder, parts: Sequence[int], fraction: float = 0.2, seed: int = 0, weight_scale: float = 1.0
) -> Supervision:
    """A reader of it for the only worker."""
    split: Split = plan_split(folder, list(parts), fraction, seed)
    return Supervision(folder, tuple(parts), split, weight_scale)


def separable(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Texts of business or of sport words, and soft targets that say which."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=rows)
    texts = [" ".join(rng.choice(_SPORT if k else _BUSINESS, size=rng.integers(2, 8))) for k in kind]
    targets = np.where(kind[:, None] == np.arange(2), 0.95, 0.05).astype(np.float32)
    return texts, targets


def job(tmp_path: Path, rows: int = 96, weights: np.ndarray | None = None, **settings: object) -> TrainingJob:
    """A tiny student on the separable task, in float32."""
    texts, targets = separable(rows)
    parts = [rows // 3, rows // 3, rows - 2 * (rows // 3)]
    folder = write(tmp_path / "supervision", parts, texts, targets, weights)
    base = tiny.base(tmp_path / "base")
    defaults: dict[str, object] = {
        "precision": "float32", "epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "dropout": 0.0, "validation": 0.2,
    }  # fmt: skip
    training = TrainingConfig.model_validate(defaults | settings)
    student = inspect_student(StudentConfig(model=str(base)), 32)
    return TrainingJob(
        student, LABELS, training, supervision(folder, parts, training.validation, training.seed), threads=1
    )
