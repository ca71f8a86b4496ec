"""Small complete runs for the tests of the pipeline and the workflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muki_ray.config import IntegrateConfig, parse_config
from muki_ray.pipeline import ScoringTask, scoring_task
from muki_ray.runtime import connected
from muki_ray.store import Folder, RunFolder
from muki_ray.tracking import Tracker
from muki_ray.workflow.plan import draw_up
from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
from muki_ray.workflow.run import Run
from muki_ray.workflow.score import score_and_integrate
from tests import tiny

LABELS = {"one": ["business", "tech"], "two": ["film", "politics", "sport"], "three": ["sport", "weather"]}
KINDS = {"one": "bert", "two": "distilbert", "three": "bert"}


def models(root: Path) -> Path:
    """Three tiny teachers (two architectures, two labels in common) and a base model."""
    for seed, (name, labels) in enumerate(LABELS.items()):
        tiny.classifier(root / name, labels, KINDS[name], seed=seed)
    tiny.base(root / "base", seed=9)
    return root


def corpus(path: Path, rows: int, seed: int = 0, label: str | None = None) -> Path:
    """A Parquet file of tiny texts, with gold labels that integration must never read."""
    columns: dict[str, Any] = {"text": tiny.texts(rows, seed)}
    if label is not None:
        columns["label"] = [label] * rows
    pq.write_table(pa.table(columns), path)
    return path


def config(
    root: Path, output: Path, path: Path, names: Sequence[str] = ("one", "two"), **changes: Any
) -> IntegrateConfig:
    """A configuration over `models(root)`: 4 samples, small shards, fp32, no tracking."""
    content: dict[str, Any] = {
        "teachers": [
            # one thread, as in the tests' own process: then numbers are equal to the byte
            {"name": n, "model": str(root / n), "dtype": "float32", "resources": {"threads": 1}}
            for n in names
        ],
        "corpus": {"path": str(path), "shard_rows": 8},
        "student": {"model": str(root / "base")},
        "method": {"samples": 4},
        "training": {
            "epochs": 2,
            "precision": "float32",
            "batch_size": 16,
            "learning_rate": 1e-3,
            "num_cpus": 1,
        },
        "tracking": {"enabled": False},
        "output": str(output),
    }
    return parse_config({**content, **changes})


def begun(wanted: IntegrateConfig) -> tuple[Run, list[ScoringTask]]:
    """A run of which nothing is done yet, and its teachers' tasks."""
    wanted = settled(wanted)
    folder = RunFolder(wanted.output)
    specs, space, student = inspect_all(wanted)
    run = Run(wanted, folder, specs, space, student, read_corpora(wanted, folder, space), Tracker())
    return run, [scoring_task(spec.resolved(False), wanted.method, run.corpora, folder) for spec in specs]


def score_only(wanted: IntegrateConfig) -> tuple[dict[str, int], Folder, dict[str, Any], list[ScoringTask]]:
    """Everything up to the supervision: rows scored now, its folder and manifest, the teachers' tasks."""
    run, tasks = begun(wanted)
    with connected() as cluster:
        supervision, facts = score_and_integrate(run, draw_up(run.config, tasks, cluster), cluster)
    return run.metrics["rows"]["scored"], supervision, facts, tasks
