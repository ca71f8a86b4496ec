"""The student's temperature, fitted to held-out targets and folded into its head: any loader then gives its answers.

Knows the exported folder, the supervision and where to predict; the fit is `muki_ray.calibration`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muki_ray.assess import Classifier, predict_where
from muki_ray.calibration import fit_temperature
from muki_ray.progress import say
from muki_ray.runtime import Cluster
from muki_ray.store import Folder
from muki_ray.student.data import Batch, Supervision
from muki_ray.student.export import MARKER, copy_files
from muki_ray.student.heads import last_projection
from muki_ray.student.objectives import Objective, WeightedKl
from muki_ray.student.train import worker_cpus
from muki_ray.workflow.run import Run

# held-out rows that are enough for one number
_MOST_ROWS = 2000
_BATCH_ROWS = 256
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
    texts, pairs, targets_NC = _held_out(list(supervision.held_out(_BATCH_ROWS)))
    student, names = run.folder.student, list(run.space.names)
    cpus, gpus = worker_cpus(run.config.training, cluster.reach, cluster.places)
    classifier = Classifier("student", student.location, run.student.max_length)
    probs = predict_where(cluster, [classifier], texts, pairs, names, cpus, gpus)["student"]
    temperature = fit_temperature(probs, targets_NC)
    divide_logits(student, len(names), temperature)
    run.metrics["calibration"] = {"temperature": temperature}
    say(f"calibration: temperature {temperature:.2f}, from {len(texts):,} held-out rows")


def _held_out(batches: Sequence[Batch]) -> tuple[list[str], list[str] | None, np.ndarray]:
    """Texts, pairs and targets `[N, C]` of rows spread evenly over the lengths that there are."""
    texts = [text for batch in batches for text in batch.texts]
    pairs = [pair for batch in batches for pair in batch.pairs or ()]
    targets_NC = np.concatenate([batch.targets for batch in batches])
    some = np.unique(np.linspace(0, len(texts) - 1, _MOST_ROWS).astype(np.int64))
    return [texts[i] for i in some], [pairs[i] for i in some] if pairs else None, targets_NC[some]


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
