"""Who runs where: teachers packed into waves that the cluster can hold at once.

Pure: numbers in, numbers out; knows no Ray. All teachers of a wave hold their actors at the same time, and
the light stages need a little beside them; more teachers than that would wait for each other for ever. The
evidence store makes waves free: the next wave reads what the last one wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muki_ray.config import ActorResources, TeacherConfig
from muki_ray.errors import ResourceError

# CPUs that the reading, integration and driver-side tasks need beside the actors
LIGHT_TASK_CPUS = 0.1
_RESERVED_CPUS = 2 * LIGHT_TASK_CPUS
# beyond this many threads one model's small matrices no longer scale; more actors do
_MOST_THREADS = 8


@dataclass(frozen=True)
class PoolPlan:
    """One teacher's pool of actors."""

    teacher: str
    num_cpus: float
    num_gpus: float
    accelerator_type: str | None
    min_actors: int
    max_actors: int
    threads: int


def on_gpu(resources: ActorResources, cluster: Mapping[str, float]) -> bool:
    """Whether a teacher runs on GPUs: as configured, else wherever the cluster has any."""
    wanted = resources.num_gpus
    return cluster.get("GPU", 0) > 0 if wanted is None else wanted > 0


def plan_waves(
    teachers: Sequence[TeacherConfig], cluster: Mapping[str, float], *, may_grow: bool
) -> list[list[PoolPlan]]:
    """Pack teachers, in their order, into waves.

    Args:
        teachers: those that have something to score.
        cluster: resources by name (`CPU`, `GPU`), as Ray counts them.
        may_grow: whether an autoscaler may add what is missing now.

    Raises:
        ResourceError: one teacher alone asks for more than a cluster that cannot grow has.
    """
    cpus, gpus = float(cluster.get("CPU", 0)), float(cluster.get("GPU", 0))
    free_cpus = max(cpus - _RESERVED_CPUS, 0.0)
    at_once = max(1, min(len(teachers), int(cpus)))
    waves: list[list[PoolPlan]] = []
    room_cpus = room_gpus = -1.0
    for teacher in teachers:
        least = _least(teacher, free_cpus, at_once, cluster)
        need_cpus, need_gpus = least.num_cpus * least.min_actors, least.num_gpus * least.min_actors
        if not may_grow and (need_cpus > free_cpus + 1e-9 or need_gpus > gpus):
            raise ResourceError(
                f"teacher {teacher.name!r} asks for {need_cpus:g} CPUs and {need_gpus:g} GPUs, but this machine offers {free_cpus:g} and {gpus:g}; "
                "lower its resources or use a larger cluster"
            )
        fits = (
            need_cpus <= room_cpus + 1e-9
            and need_gpus <= room_gpus + 1e-9
            and len(waves[-1]) < max(at_once, int(gpus))
        )
        if not fits:
            waves.append([])
            room_cpus, room_gpus = free_cpus, gpus
        waves[-1].append(least)
        room_cpus, room_gpus = room_cpus - need_cpus, room_gpus - need_gpus
    return [_widen(wave, {t.name: t.resources for t in teachers}, free_cpus, gpus) for wave in waves]


def _least(teacher: TeacherConfig, free_cpus: float, at_once: int, cluster: Mapping[str, float]) -> PoolPlan:
    """The smallest pool of a teacher."""
    wanted = teacher.resources
    gpu = on_gpu(wanted, cluster)
    num_gpus = (1.0 if wanted.num_gpus is None else wanted.num_gpus) if gpu else 0.0
    share = 1.0 if gpu else min(free_cpus / at_once, float(_MOST_THREADS))
    num_cpus = wanted.num_cpus or max(round(share - 0.005, 2), 0.05)
    threads = wanted.threads or max(1, round(num_cpus))
    most = wanted.max_actors or wanted.min_actors
    return PoolPlan(
        teacher.name, num_cpus, num_gpus, wanted.accelerator_type, wanted.min_actors, most, threads
    )


def _widen(
    wave: list[PoolPlan], wanted: Mapping[str, ActorResources], free_cpus: float, gpus: float
) -> list[PoolPlan]:
    """Let pools without a configured maximum share what the wave leaves free."""
    left_cpus = free_cpus - sum(p.num_cpus * p.min_actors for p in wave)
    left_gpus = gpus - sum(p.num_gpus * p.min_actors for p in wave)
    result = []
    for position, pool in enumerate(wave):
        extra = 0
        if wanted[pool.teacher].max_actors is None:
            sharing = len(wave) - position
            by_cpu = left_cpus / sharing / pool.num_cpus
            by_gpu = left_gpus / sharing / pool.num_gpus if pool.num_gpus else by_cpu
            extra = max(0, int(min(by_cpu, by_gpu) + 1e-9))
        left_cpus -= extra * pool.num_cpus
        left_gpus -= extra * pool.num_gpus
        most = max(pool.max_actors, pool.min_actors + extra)
        result.append(
            PoolPlan(
                pool.teacher,
                pool.num_cpus,
                pool.num_gpus,
                pool.accelerator_type,
                pool.min_actors,
                most,
                pool.threads,
            )
        )
    return result
