"""Who reads the corpus' sample with the student's base model, and where: what co-training asks where words say little.

Knows the student and the cluster; what an embedding is good for `muki_ray.cotraining` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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

    def embedded(texts: Sequence[str]) -> NDArray[np.float32] | None:
        where = _here if cluster.is_here(gpus) else _on_cluster
        if alone:
            with _shown(len(texts)) as done:
                found = where(student, texts, cpus, gpus, done)
        else:
            found = where(student, texts, cpus, gpus, lambda rows: None)
            say(f"embedding: {len(texts):,} rows")
        if found is None:
            say("note: student.model gives no vector per token, so co-training goes by the words alone")
        return found

    return embedded


@contextmanager
def _shown(rows: int) -> Iterator[Callable[[int], None]]:
    """Progress of so many rows; a function that counts them."""
    done = 0
    with Progress("embedding", rows) as progress:

        def count(more: int) -> None:
            nonlocal done
            done += more
            progress.update(done)

        yield count


def _here(
    student: StudentSpec, texts: Sequence[str], cpus: float, gpus: float, done: Callable[[int], None]
) -> NDArray[np.float32] | None:
    return embed(student, texts, max(1, int(cpus)), gpus > 0, done)


def _on_cluster(
    student: StudentSpec, texts: Sequence[str], cpus: float, gpus: float, done: Callable[[int], None]
) -> NDArray[np.float32] | None:
    """As a Ray task, which tells how far it is."""
    with listening(lambda _, rows: done(rows)) as messenger:

        def work(texts: Sequence[str]) -> NDArray[np.float32] | None:
            return embed(
                student, texts, max(1, int(cpus)), gpus > 0, lambda rows: messenger.send("embedded", rows)
            )

        task = ray.remote(work).options(num_cpus=cpus, num_gpus=gpus, max_retries=2)
        try:
            found: NDArray[np.float32] | None = ray.get(task.remote(ray.put(list(texts))))
        except ray.exceptions.RayError as error:
            known = user_error(error)
            raise (known or error) from None
    return found
