"""Who reads the corpus' sample with the student's base model, and where: what co-training asks where words say little.

Knows the student and the cluster; what an embedding is good for `muki_ray.cotraining` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muki_ray.config import TrainingConfig
from muki_ray.config_method import AnyMethod
from muki_ray.embedding import embed
from muki_ray.embedding_view import Embed
from muki_ray.progress import Progress, say
from muki_ray.runtime import Cluster, listening, ray, user_error
from muki_ray.student.model import StudentSpec
from muki_ray.student.train import worker_cpus


def reads(method: AnyMethod) -> bool:
    """Whether the method may ask what the student's base makes of texts."""
    return method.cotraining and method.embedding


def embedder(
    method: AnyMethod, student: StudentSpec, training: TrainingConfig, cluster: Cluster, alone: bool = True
) -> Embed | None:
    """Embeds texts with the resources of a training worker; None where the method never asks.

    Args:
        alone: whether nothing else has the terminal's last line.
    """
    if not reads(method):
        return None
    cpus, gpus = worker_cpus(training, cluster.reach, cluster.places)
    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus}
    if gpus and training.accelerator_type is not None:
        options["accelerator_type"] = training.accelerator_type

    def embedded(texts: Sequence[str]) -> NDArray[np.float32] | None:
        if not alone:
            say(f"embedding: {len(texts):,} rows")
        with Progress("embedding", len(texts)) if alone else nullcontext() as progress:
            done = _ignored if progress is None else progress.update
            work = _read if cluster.is_here(gpus) else _on_cluster
            found = work(student, texts, options, done)
            done(len(texts))  # what a task said last may come too late
        if found is None:
            say(
                "note: student.model gives no finite vector per token, so co-training goes by the words alone"
            )
        return found

    return embedded


def _ignored(done: int) -> None:
    """For work whose progress nobody watches."""


def _read(
    student: StudentSpec, texts: Sequence[str], options: Mapping[str, Any], done: Callable[[int], None]
) -> NDArray[np.float32] | None:
    """In this process; `done` is called with the rows done so far."""
    return embed(student, texts, max(1, int(options["num_cpus"])), options["num_gpus"] > 0, done)


def _on_cluster(
    student: StudentSpec, texts: Sequence[str], options: Mapping[str, Any], done: Callable[[int], None]
) -> NDArray[np.float32] | None:
    """As a Ray task, which tells how far it is."""
    with listening(lambda _, rows: done(rows)) as messenger:

        def work(texts: Sequence[str]) -> NDArray[np.float32] | None:
            return _read(student, texts, options, lambda rows: messenger.send("embedded", rows))

        task = ray.remote(work).options(**options, max_retries=2)
        try:
            found: NDArray[np.float32] | None = ray.get(task.remote(ray.put(list(texts))))
        except ray.exceptions.RayError as error:
            known = user_error(error)
            raise (known or error) from None
    return found
