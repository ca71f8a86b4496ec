"""A short look at a teacher at work: how long a process takes to start, to load it, and how fast it then is.

Runs as Ray tasks of the size of the planned actors, as many at once: on one machine they disturb each other as the
actors will. Knows a teacher's task; decides nothing.

Shapes: R rows of the probe.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from muki_ray.planning import PoolPlan
from muki_ray.planning.estimate import Pace
from muki_ray.runtime import ray, user_error
from muki_ray.stage import load_scorer
from muki_ray.tasks import ScoringTask

# seconds of scoring that tell a rate
_LONG_ENOUGH = 1.0
_FIRST_ROWS = 8
# longest that anything is waited for: a node that does not come, a model from far away
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class _Seen:
    """What one task saw; seconds. `inside`: of the whole task."""

    inside: float
    imports: float
    first_load: float
    load: float
    rows_per_s: float
    memory_mib: float


def probe(
    chosen: Sequence[tuple[ScoringTask, PoolPlan]], texts: Sequence[str], pairs: Sequence[str] | None
) -> list[Pace | None]:
    """The pace of each of these teachers on an actor as planned.

    Args:
        texts, pairs: `R` rows of the corpus.

    Returns:
        None for one whose actor found no place in time.

    Raises:
        UserError: a teacher cannot be loaded.
    """
    run = ray.remote(_measure)
    rows = ray.put((list(texts), None if pairs is None else list(pairs)))
    began, running = time.monotonic(), []
    for task, pool in chosen:
        options: dict[str, Any] = {"num_cpus": pool.num_cpus, "max_retries": 0}
        if pool.num_gpus:
            options["num_gpus"] = pool.num_gpus
        if pool.accelerator_type:
            options["accelerator_type"] = pool.accelerator_type
        several = len(pool.teachers) > 1
        running.append(run.options(**options).remote(task, pool.threads, rows, several))
    taken: dict[Any, float] = {}
    waiting = list(running)
    while waiting and time.monotonic() - began < _PATIENCE_S:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
        taken.update(dict.fromkeys(ready, time.monotonic() - began))
    for one in waiting:
        ray.cancel(one, force=True)
    try:
        seen = {one: ray.get(one) for one in running if one in taken}
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    if not seen:
        return [None] * len(running)
    # those that waited for others to end say nothing of how long a process takes to start
    first = min(taken[one] - seen[one].inside for one in seen)
    starts = [
        taken[one] - found.inside + found.imports + found.first_load - found.load
        for one, found in seen.items()
        if taken[one] - found.inside < first + found.inside
    ]
    start = median(starts)
    return [
        Pace(start, seen[one].load, seen[one].rows_per_s, seen[one].memory_mib) if one in seen else None
        for one in running
    ]


def _measure(
    task: ScoringTask, threads: int, rows: tuple[list[str], list[str] | None], several: bool
) -> _Seen:
    """What an actor does at its start, and then to a few rows.

    Args:
        several: the actor will load one teacher after another: a later load is what counts.
    """
    began = time.perf_counter()
    import ray.data as _needed_by_actors  # noqa: F401
    import torch

    import muki_ray.teachers.scoring  # noqa: F401

    imported = time.perf_counter()
    texts, pairs = rows
    scorer = load_scorer(task, threads)
    loaded = time.perf_counter()
    first_load = load = loaded - imported
    scorer.score(texts[:1], pairs and pairs[:1])  # the first forward is slower than all others
    # the second load still sets aside what was imported, the third is like all others
    for _ in range(2 if several else 0):
        del scorer
        again = time.perf_counter()
        scorer = load_scorer(task, threads)
        load = time.perf_counter() - again
    count, done, taken = min(_FIRST_ROWS, len(texts)), 0, 0.0
    while taken < _LONG_ENOUGH:
        tick = time.perf_counter()
        scorer.score(texts[:count], pairs and pairs[:count])
        taken, done = taken + time.perf_counter() - tick, done + count
        if taken < _LONG_ENOUGH and count < len(texts):  # too few to tell: again, with more
            count, done, taken = min(count * 4, len(texts)), 0, 0.0
    device = scorer.device
    memory = (
        torch.cuda.max_memory_allocated(device) / 2**20
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    )
    return _Seen(time.perf_counter() - began, imported - began, first_load, load, done / taken, memory)
