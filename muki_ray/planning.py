"""Who runs where: teachers packed into waves that the cluster can hold at once.

Pure: numbers in, numbers out; knows no Ray. All teachers of a wave hold their actors at the same time, and
the light stages need a little beside them; more teachers than that would wait for each other for ever. The
evidence store makes waves free: the next wave reads what the last one wrote. An actor lives on one node, so
what counts is not what the cluster has in all, but what fits its nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from muki_ray.config import ActorResources, TeacherConfig
from muki_ray.errors import ResourceError

Resources = Mapping[str, float]

# CPUs that the reading, integration and driver-side tasks need beside the actors
LIGHT_TASK_CPUS = 0.1
_RESERVED_CPUS = 2 * LIGHT_TASK_CPUS
# beyond this many threads one model's small matrices no longer scale; more actors do
_MOST_THREADS = 8
# an actor smaller than this only takes memory
_LEAST_CPUS = 0.05
# pools of a cluster that may grow have no maximum of their own: what nodes there are bounds them
_MOST_ACTORS = 1000
_ROUNDING = 1e-9
# light tasks that run at once: each is a process of its own, which takes a second of CPU to start
_CPUS_PER_LIGHT_TASK = 4


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


def on_gpu(resources: ActorResources, cluster: Resources) -> bool:
    """Whether a teacher runs on GPUs: as configured, else wherever the cluster has any."""
    wanted = resources.num_gpus
    return cluster.get("GPU", 0) > 0 if wanted is None else wanted > 0


def light_tasks(cluster: Resources) -> int:
    """How many light tasks may run at once beside the actors."""
    return max(1, int(cluster.get("CPU", 0)) // _CPUS_PER_LIGHT_TASK)


def equal_share(nodes: Sequence[Resources], count: int, most: float, num_gpus: float = 0.0) -> float:
    """The most CPUs, in hundredths, that `count` equal actors can each have on these nodes, up to `most`.

    Args:
        num_gpus: what each takes beside; where the GPUs hold fewer than `count`, as many as they hold.

    Returns:
        0 where not even the smallest share fits.
    """
    # most clusters have few kinds of nodes: CPUs in hundredths, and how many actors the GPUs hold
    kinds = Counter((_hundredths(node.get("CPU", 0)), _gpu_places(node, num_gpus, count)) for node in nodes)
    wanted = min(count, sum(places * alike for (_, places), alike in kinds.items()))
    for share in range(_hundredths(most), _hundredths(_LEAST_CPUS) - 1, -1):
        held = sum(min(cpus // share, places) * alike for (cpus, places), alike in kinds.items())
        if held >= wanted > 0:
            return share / 100
    return 0.0


def _hundredths(cpus: float) -> int:
    return int(cpus * 100 + 1e-6)


def _gpu_places(node: Resources, num_gpus: float, otherwise: int) -> int:
    """Actors that a node's GPUs hold; Ray shares single GPUs by fractions, and hands out several only whole."""
    if num_gpus <= 0:
        return otherwise
    gpus = int(node.get("GPU", 0))
    return gpus * int(1 / num_gpus + _ROUNDING) if num_gpus <= 1 else gpus // int(num_gpus)


class _Room:
    """What the nodes have left while a wave is packed: the first node that fits takes an actor."""

    def __init__(self, nodes: Sequence[Resources]) -> None:
        self.cpus = [float(node.get("CPU", 0)) for node in nodes]
        self.gpus = [[1.0] * int(node.get("GPU", 0)) for node in nodes]

    def take(self, pool: PoolPlan, actors: int) -> bool:
        """Place so many actors, all or none."""
        before = list(self.cpus), [list(gpus) for gpus in self.gpus]
        for _ in range(actors):
            if not any(self._take_on(node, pool) for node in range(len(self.cpus))):
                self.cpus, self.gpus = before
                return False
        return True

    def _take_on(self, node: int, pool: PoolPlan) -> bool:
        gpus = self.gpus[node]
        each = min(pool.num_gpus, 1.0)
        fitting = [g for g, free in enumerate(gpus) if each <= free + _ROUNDING]
        needed = max(1, int(pool.num_gpus)) if pool.num_gpus else 0
        if pool.num_cpus > self.cpus[node] + _ROUNDING or len(fitting) < needed:
            return False
        self.cpus[node] -= pool.num_cpus
        for g in fitting[:needed]:
            gpus[g] -= each
        return True


def plan_waves(
    teachers: Sequence[TeacherConfig],
    cluster: Resources,
    *,
    may_grow: bool,
    nodes: Sequence[Resources] = (),
) -> list[list[PoolPlan]]:
    """Pack teachers, in their order, into waves.

    Args:
        teachers: those that have something to score.
        cluster: resources by name (`CPU`, `GPU`), as Ray counts them.
        may_grow: whether an autoscaler may add what is missing now.
        nodes: the same, node by node; without, the cluster counts as one node.

    Raises:
        ResourceError: one teacher alone asks for more than a cluster that cannot grow has.
    """
    offered = _less_light_tasks(nodes or [cluster])
    at_once = max(1, min(len(teachers), int(cluster.get("CPU", 0))))
    share = cache(partial(equal_share, offered))
    pools = [_least(teacher, cluster, share, at_once, len(teachers)) for teacher in teachers]
    if not may_grow:
        for pool in pools:
            _check_fits(pool, offered)
    waves: list[list[PoolPlan]] = []
    room = _Room(())
    for pool in pools:
        if not waves or not room.take(pool, pool.min_actors):
            waves.append([])
            room = _Room(offered)
            if not room.take(pool, pool.min_actors):
                room = _Room(())  # it waits for new nodes, and nobody waits with it
        waves[-1].append(pool)
    open_ended = {t.name for t in teachers if t.resources.max_actors is None}
    if may_grow:
        return [[_unbounded(pool) if pool.teacher in open_ended else pool for pool in wave] for wave in waves]
    return [_widened(wave, open_ended, offered) for wave in waves]


def _less_light_tasks(nodes: Sequence[Resources]) -> list[dict[str, float]]:
    """The nodes, with what the light tasks need taken off the largest."""
    offered = [{"CPU": float(n.get("CPU", 0)), "GPU": float(n.get("GPU", 0))} for n in nodes]
    largest = max(offered, key=lambda node: node["CPU"])
    largest["CPU"] = max(largest["CPU"] - _RESERVED_CPUS, 0.0)
    return offered


def _least(
    teacher: TeacherConfig,
    cluster: Resources,
    share: Callable[[int, float, float], float],
    at_once: int,
    teachers: int,
) -> PoolPlan:
    """The smallest pool of a teacher: as configured, else an equal share of what is there."""
    wanted = teacher.resources
    gpu = on_gpu(wanted, cluster)
    num_gpus = (1.0 if wanted.num_gpus is None else wanted.num_gpus) if gpu else 0.0
    if wanted.num_cpus is not None:
        num_cpus = wanted.num_cpus
    else:
        # an actor with a GPU needs little beside it, so that more of them than CPUs may run at once
        most_cpus = 1.0 if gpu else _MOST_THREADS
        together = (teachers if gpu else at_once) * wanted.min_actors
        num_cpus = (
            share(together, most_cpus, num_gpus) or share(wanted.min_actors, most_cpus, num_gpus) or 1.0
        )
    most = wanted.max_actors or wanted.min_actors
    threads = wanted.threads or max(1, round(num_cpus))
    return PoolPlan(
        teacher.name, num_cpus, num_gpus, wanted.accelerator_type, wanted.min_actors, most, threads
    )


def _check_fits(pool: PoolPlan, offered: Sequence[Resources]) -> None:
    if _Room(offered).take(pool, pool.min_actors):
        return
    cpus, gpus = (sum(node[kind] for node in offered) for kind in ("CPU", "GPU"))
    raise ResourceError(
        f"teacher {pool.teacher!r} asks for {pool.num_cpus * pool.min_actors:g} CPUs and "
        f"{pool.num_gpus * pool.min_actors:g} GPUs, but this machine offers {cpus:g} and {gpus:g} beside "
        f"the {_RESERVED_CPUS:g} CPUs that light tasks need; lower its resources or use a larger cluster"
    )


def _unbounded(pool: PoolPlan) -> PoolPlan:
    return replace(pool, max_actors=max(pool.max_actors, _MOST_ACTORS))


def _widened(wave: list[PoolPlan], open_ended: set[str], offered: Sequence[Resources]) -> list[PoolPlan]:
    """Let pools without a configured maximum share, in turns, what the wave leaves free."""
    room = _Room(offered)
    actors = {pool.teacher: pool.min_actors for pool in wave}
    for pool in wave:
        room.take(pool, pool.min_actors)
    waiting = [pool for pool in wave if pool.teacher in open_ended]
    while waiting:
        waiting = [pool for pool in waiting if room.take(pool, 1)]
        for pool in waiting:
            actors[pool.teacher] += 1
    return [replace(pool, max_actors=max(pool.max_actors, actors[pool.teacher])) for pool in wave]
