"""What a plan costs: time and device-hours, from what a short measurement said of each kind of teacher.

Pure: numbers in, numbers out. Does not know what comes after scoring, nor that teachers on one machine disturb each
other: whoever measures lets as many work at once as the plan does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muki_ray.planning.waves import PoolPlan

_HOUR = 3600.0


@dataclass(frozen=True)
class Pace:
    """How fast one actor is with one teacher.

    Attributes:
        start_s: seconds until a new process can load a teacher.
        load_s: seconds to load one.
        rows_per_s: of one actor.
        memory_mib: most that the process held, of the device where it is a GPU.
    """

    start_s: float
    load_s: float
    rows_per_s: float
    memory_mib: float


@dataclass(frozen=True)
class TeacherCost:
    """What one teacher costs: seconds of one actor, and what devices that are, in hours."""

    actor_s: float
    gpu_hours: float
    cpu_hours: float


@dataclass(frozen=True)
class Estimate:
    """Of all waves together. `seconds` is time on the clock, from the first actor's start to the last shard."""

    teachers: dict[str, TeacherCost]
    seconds: float

    @property
    def gpu_hours(self) -> float:
        """Of all teachers."""
        return sum(cost.gpu_hours for cost in self.teachers.values())

    @property
    def cpu_hours(self) -> float:
        """Of all teachers."""
        return sum(cost.cpu_hours for cost in self.teachers.values())


def estimate(
    waves: Sequence[Sequence[PoolPlan]],
    paces: Mapping[str, Pace],
    rows: Mapping[str, int],
    loads: Mapping[str, int],
) -> Estimate:
    """Add up a plan.

    Args:
        paces: of each teacher, on an actor as planned.
        rows: that each has to score.
        loads: times that an actor turns to the teacher: see `pipeline.turns`.
    """
    costs: dict[str, TeacherCost] = {}
    seconds = 0.0
    for wave in waves:
        for pool in wave:
            for name in pool.teachers:
                pace = paces[name]
                busy = loads[name] * pace.load_s + rows[name] / pace.rows_per_s
                costs[name] = TeacherCost(busy, busy * pool.num_gpus / _HOUR, busy * pool.num_cpus / _HOUR)
        seconds += max(_pool_seconds(pool, costs, paces, loads) for pool in wave)
    return Estimate(costs, seconds)


def _pool_seconds(
    pool: PoolPlan, costs: Mapping[str, TeacherCost], paces: Mapping[str, Pace], loads: Mapping[str, int]
) -> float:
    """From the start of its actors until it has nothing left to do."""
    turns = sum(loads[name] for name in pool.teachers)
    actors = max(1, min(pool.initial_actors, turns))
    busy = sum(costs[name].actor_s for name in pool.teachers)
    longest = max(costs[name].actor_s / max(1, loads[name]) for name in pool.teachers)
    start = max(paces[name].start_s for name in pool.teachers)
    return start + max(busy / actors, longest)
