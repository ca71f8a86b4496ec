"""The student's temperature, fitted to held-out rows and folded into its head: any loader then gives its answers.

Knows the exported folder, the supervision and where to predict; the fit is `muki_ray.calibration`'s.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from muki_ray.assess import Classifier, predict_where
from muki_ray.calibration import fit_temperature
from muki_ray.progress import say
from muki_ray.runtime import Cluster
from muki_ray.store import Folder, part_name
from muki_ray.student.data import Supervision
from muki_ray.student.export import MARKER, copy_files
from muki_ray.student.heads import last_projection
from muki_ray.student.objectives import Objective, WeightedKl
from muki_ray.student.train import worker_cpus
from muki_ray.supervision import expected
from muki_ray.workflow.run import Run

# held-out rows that are enough for one number
_MOST_ROWS = 2000
_WEIGHTS = ".safetensors"


def is_wanted(run: Run, objective: Objective) -> bool:
    """Whether this student gets a temperature: only targets over the union say how sure it should be."""
    return run.config.student.calibrate and isinstance(objective, WeightedKl)


def temperature_of(student: Folder) -> float | None:
    """What a finished student's logits were divided by; None where they were not."""
    content: Any = student.read_json(MARKER) if student.has(MARKER) else None
    found = content.get("temperature") if isinstance(content, dict) else None
    return float(found) if isinstance(found, (int, float)) else None


def calibrate(run: Run, supervision: Supervision, cluster: Cluster) -> None:
    """Fit the exported student's temperature and divide its last projection by it; says so in the run's metrics.

    The folder must not be declared whole yet: a run that is killed here exports the checkpoint again.
    """
    rows = _held_out(supervision)
    texts = rows["text"].to_pylist()
    pairs = rows["text_pair"].to_pylist() if "text_pair" in rows.column_names else None
    student, names = run.folder.student, list(run.space.names)
    cpus, gpus = worker_cpus(run.config.training, cluster.reach, cluster.places)
    classifier = Classifier("student", student.location, run.student.max_length)
    probs = predict_where(cluster, [classifier], texts, pairs, names, cpus, gpus)["student"]
    temperature = fit_temperature(probs, expected(rows, run.space, run.config.method))
    divide_logits(student, len(names), temperature)
    run.metrics["calibration"] = {"temperature": temperature}
    say(f"calibration: temperature {temperature:.2f}, from {len(texts):,} held-out rows")


def _held_out(supervision: Supervision) -> pa.Table:
    """Held-out rows, from no more shards than it takes, which are spread over the corpus."""
    shards = len(supervision.rows_per_part)
    found: list[pa.Table] = []
    for shard in np.random.default_rng(supervision.split.seed % 2**32).permutation(shards):
        table = supervision.folder.read_table(part_name(int(shard)))
        found.append(table.filter(pa.array(supervision.split.held_out(table["row_id"].to_numpy()))))
        if sum(map(len, found)) >= _MOST_ROWS:
            break
    return pa.concat_tables(found).slice(0, _MOST_ROWS)


def divide_logits(student: Folder, labels: int, temperature: float) -> None:
    """Divide the last projection of a model folder by the temperature; its other weights stay as they are."""
    import torch
    from transformers import AutoModelForSequenceClassification

    with tempfile.TemporaryDirectory() as scratch:
        here = Folder(scratch)
        copy_files(student.location, sorted(student.names()), here)
        model = AutoModelForSequenceClassification.from_pretrained(
            scratch, dtype="auto", use_safetensors=True
        )
        _, head = last_projection(model, labels)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.div_(temperature)
        written = Path(scratch, "calibrated")  # the model's weights may be the files that it was read from
        model.save_pretrained(written)
        weights = sorted(path.name for path in written.iterdir() if path.name.endswith(_WEIGHTS))
        copy_files(str(written), weights, student)
