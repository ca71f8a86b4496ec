"""A short look at teachers at work: how long a process takes to start, to load one, and how fast it then is.

Runs as actors of the planned size and number. What one of them does is measured while the others do the same: on one
machine they share its processors, as those of the run will. Knows a teacher's task; decides nothing.

Shapes: R rows of the probe.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from muki_ray.planning import PoolPlan
from muki_ray.planning.estimate import Pace
from muki_ray.runtime import ray, user_error
from muki_ray.stage import load_scorer
from muki_ray.tasks import ScoringTask

if TYPE_CHECKING:
    from muki_ray.teachers.scoring import Scorer

# seconds of scoring that tell a rate
_LONG_ENOUGH = 1.0
# seconds that a look takes at least, so that the looks of all actors overlap
_TOGETHER = 3.0
_FIRST_ROWS = 8
# longest that a first model is waited for: a node that does not come, a model from far away
_PATIENCE_S = 300.0
# longest that actors which have their model wait for those that do not
_GRACE_S = 15.0


@dataclass(frozen=True)
class Crew:
    """A pool, the teachers to look at on its actors, and how many of these it will have; one or more of each."""

    pool: PoolPlan
    tasks: Sequence[ScoringTask]
    actors: int

    @property
    def turns(self) -> int:
        """Teachers that each actor looks at, so that between them they look at all."""
        return -(-len(self.tasks) // self.actors)

    def of_actor(self, place: int) -> list[ScoringTask]:
        """Those of one actor."""
        return [self.tasks[(place + turn * self.actors) % len(self.tasks)] for turn in range(self.turns)]


@dataclass(frozen=True)
class Look:
    """What an actor saw of one teacher: seconds to load it, rows per second, most memory."""

    load_s: float
    rows_per_s: float
    memory_mib: float


def probe(crews: Sequence[Crew], texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, Pace]:
    """The pace of these teachers, all crews at work at once.

    Args:
        texts, pairs: `R` rows of the corpus.

    Returns:
        By teacher; without those whose actors found no place in time.

    Raises:
        UserError: a teacher cannot be loaded.
    """
    rows = ray.put((list(texts), None if pairs is None else list(pairs)))
    actors = [_actor(crew, place, rows) for crew in crews for place in range(crew.actors)]
    try:
        start_s, looks = _looked(actors, max(crew.turns for crew in crews))
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    finally:
        for actor in actors:
            ray.kill(actor)
    return {
        name: Pace(
            start_s,
            median(look.load_s for look in seen),
            median(look.rows_per_s for look in seen),
            max(look.memory_mib for look in seen),
        )
        for name, seen in looks.items()
    }


def _actor(crew: Crew, place: int, rows: Any) -> Any:
    pool = crew.pool
    options: dict[str, Any] = {"num_cpus": pool.num_cpus, "max_restarts": 0}
    if pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.accelerator_type:
        options["accelerator_type"] = pool.accelerator_type
    several = len(pool.teachers) > 1
    return ray.remote(Looker).options(**options).remote(crew.of_actor(place), pool.threads, rows, several)


def _looked(actors: Sequence[Any], turns: int) -> tuple[float, dict[str, list[Look]]]:
    """Seconds until an actor can load a teacher; by teacher, what each actor saw of it.

    Who finds no place while the others are there is looked at once these are gone.
    """
    began = time.monotonic()
    loading = {actor.load.remote(): actor for actor in actors}
    start_s: float | None = None
    looks: dict[str, list[Look]] = {}
    while loading:
        loaded = _first(list(loading), began + _PATIENCE_S)
        if not loaded:
            break
        ray.get(list(loaded))  # raises what went wrong
        together = {loading.pop(one): when - began for one, when in loaded.items()}
        seen = ray.get([actor.look.remote(turns) for actor in together])
        if start_s is None:
            start_s = median(
                taken - first[0][1].load_s for taken, first in zip(together.values(), seen, strict=True)
            )
        for name, look in (entry for entries in seen for entry in entries):
            looks.setdefault(name, []).append(look)
        for actor in together:
            ray.kill(actor)
    return start_s or 0.0, looks


def _first(loading: Sequence[Any], until: float) -> dict[Any, float]:
    """Those that have their model, and since when: all, or all that come soon after the first."""
    done: dict[Any, float] = {}
    waiting = list(loading)
    while waiting and time.monotonic() < until:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=1.0)
        if ready and not done:
            until = min(until, time.monotonic() + _GRACE_S)
        done.update(dict.fromkeys(ready, time.monotonic()))
    return done


class Looker:
    """Ray actor: does at its start what an actor of the graph does, and then to a few rows, again and again.

    Args:
        tasks: of the teachers to look at.
        rows: texts and pairs.
        several: the pool's actors turn from one teacher to the next: what a later load takes counts, not the first.
    """

    def __init__(
        self,
        tasks: Sequence[ScoringTask],
        threads: int,
        rows: tuple[list[str], list[str] | None],
        several: bool,
    ) -> None:
        self.tasks, self.threads, self.several = tasks, threads, several
        self.texts, self.pairs = rows
        self.scorer: Scorer | None = None
        self.first_load = 0.0

    def load(self) -> None:
        """Imports, and the first model."""
        import ray.data as _needed_by_actors  # noqa: F401
        import torch  # noqa: F401

        import muki_ray.teachers.scoring  # noqa: F401

        self.first_load = self._load(self.tasks[0])
        self._score(1)  # the first forward is slower than all others
        if self.several:  # the second load still sets aside what was imported, the third is like all others
            self._load(self.tasks[0])

    def look(self, turns: int) -> list[tuple[str, Look]]:
        """At one teacher after another, from the start again until it is so many."""
        found = []
        for turn in range(turns):
            task = self.tasks[turn % len(self.tasks)]
            found.append((task.name, self._look(task)))
        return found

    def _look(self, task: ScoringTask) -> Look:
        began = time.perf_counter()
        loads = [self._load(task)] if self.several else [self.first_load]
        count, done, taken = min(_FIRST_ROWS, len(self.texts)), 0, 0.0
        while taken < _LONG_ENOUGH or time.perf_counter() - began < _TOGETHER:
            taken, done = taken + self._score(count), done + count
            if taken < _LONG_ENOUGH and count < len(self.texts):  # too few to tell: again, with more
                count, done, taken = min(count * 4, len(self.texts)), 0, 0.0
            elif self.several and time.perf_counter() - began < _TOGETHER:
                loads.append(self._load(task))
        return Look(mean(loads), done / taken, self._memory_mib())

    def _load(self, task: ScoringTask) -> float:
        self.scorer = None
        tick = time.perf_counter()
        self.scorer = load_scorer(task, self.threads)
        return time.perf_counter() - tick

    def _score(self, count: int) -> float:
        assert self.scorer is not None
        tick = time.perf_counter()
        self.scorer.score(self.texts[:count], self.pairs and self.pairs[:count])
        return time.perf_counter() - tick

    def _memory_mib(self) -> float:
        import torch

        assert self.scorer is not None
        if self.scorer.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.scorer.device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
