"""Teachers packed into pools of actors, and pools into waves that the cluster can hold at once.

Where all teachers fit at once, each has a pool of its own. Where they do not, teachers that ask for the same share one
pool, whose actors take one teacher after the other: a process starts once, not once per teacher, and nobody waits for
the slowest of a wave. All pools of a wave hold their actors at the same time, and the light stages need a little beside
them; more than that would wait for each other for ever. The evidence store makes waves free: the next one reads what
the last one wrote.

Pure: numbers in, numbers out; knows no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from muki_ray.config import ActorResources, TeacherConfig
from muki_ray.errors import ResourceError
from muki_ray.planning.nodes import (
    RESERVED_CPUS,
    Resources,
    Room,
    accelerator_types,
    equal_share,
    less_light_tasks,
    on_gpu,
    total,
)

# beyond this many threads one model's small matrices no longer scale; more actors do
_MOST_THREADS = 8
# pools of a cluster that may grow nobody knows how far have no maximum of their own: what nodes there are bounds them
_MOST_ACTORS = 1000


@dataclass(frozen=True)
class PoolPlan:
    """A pool of equal actors.

    Attributes:
        teachers: whom it serves; several take turns.
        initial_actors: what there is room for now; the pool may grow to `max_actors`.
    """

    teachers: tuple[str, ...]
    num_cpus: float
    num_gpus: float
    accelerator_type: str | None
    min_actors: int
    max_actors: int
    threads: int
    initial_actors: int

    def fits(self, room: Room, actors: int) -> bool:
        """Whether so many of its actors find a place; they then have taken it."""
        return room.take(actors, self.num_cpus, self.num_gpus, self.accelerator_type)


@dataclass(frozen=True)
class _Crew:
    """A pool while it is planned; `limit`: most actors as configured, None: as many as there is room for."""

    pool: PoolPlan
    wanted: ActorResources
    limit: int | None

    def joined(self, other: _Crew) -> _Crew:
        """Both teachers' pool."""
        pool = replace(self.pool, teachers=self.pool.teachers + other.pool.teachers)
        limit = None if self.limit is None or other.limit is None else self.limit + other.limit
        return replace(self, pool=pool, limit=limit)


def plan_waves(
    teachers: Sequence[TeacherConfig],
    cluster: Resources,
    *,
    may_grow: bool,
    nodes: Sequence[Resources] = (),
    may_add: Sequence[Resources] = (),
) -> list[list[PoolPlan]]:
    """Pack teachers, in their order, into pools and waves.

    Args:
        teachers: those that have something to score.
        cluster: resources by name (`CPU`, `GPU`), as Ray counts them.
        may_grow: whether an autoscaler may add what is missing now.
        nodes: the same, node by node; without, the cluster counts as one node.
        may_add: nodes that the autoscaler may add; empty where nobody knows.

    Raises:
        ResourceError: one teacher alone asks for more than a cluster has that cannot grow, or can only grow so far.
    """
    if not teachers:
        return []
    present = less_light_tasks(nodes or [cluster])
    offered = [*present, *({"CPU": 0.0, "GPU": 0.0, **node} for node in may_add)]
    known = bool(may_add) or not may_grow
    reach = total([cluster, *may_add])
    at_once = max(1, min(len(teachers), int(reach.get("CPU", 0))))
    share = cache(partial(_share, present, offered))
    crews = [_alone(teacher, reach, share, at_once, len(teachers)) for teacher in teachers]
    if known:
        for crew in crews:
            _check_fits(crew.pool, offered, may_grow)
    waves = _packed(crews, offered)
    if len(waves) > 1:  # they take turns
        waves = _packed(_by_shape(crews), offered)
    return [_widened(wave, present, offered, known) for wave in waves]


def waiting(pools: Iterable[PoolPlan], nodes: Sequence[Resources]) -> list[str]:
    """What pools ask for that no node has now, a line each: unless an autoscaler adds it, they wait for ever."""
    present = less_light_tasks(nodes)
    there = ", ".join(sorted(accelerator_types(present))) or "none"
    lines = []
    for pool in pools:
        if pool.fits(Room(present), pool.min_actors):
            continue
        who = pool.teachers[0] if len(pool.teachers) == 1 else f"{len(pool.teachers)} teachers"
        gpus = f" and {pool.num_gpus:g} GPUs" if pool.num_gpus else ""
        kind = f" of type {pool.accelerator_type!r} (there now: {there})" if pool.accelerator_type else ""
        lines.append(
            f"{who}: {pool.num_cpus:g} CPUs{gpus}{kind} for each of {pool.min_actors} or more actors"
        )
    return lines


def _share(
    present: Sequence[Resources], offered: Sequence[Resources], count: int, most: float, gpus: float
) -> float:
    """CPUs of each of so many actors: on the nodes that are there, else on those that may come."""
    return equal_share(present, count, most, gpus) or equal_share(offered, count, most, gpus)


def _alone(
    teacher: TeacherConfig,
    reach: Resources,
    share: Callable[[int, float, float], float],
    at_once: int,
    teachers: int,
) -> _Crew:
    """The smallest pool of a teacher: as configured, else an equal share of what is there."""
    wanted = teacher.resources
    gpu = on_gpu(teacher, reach)
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
    least, threads = wanted.min_actors, wanted.threads or max(1, round(num_cpus))
    pool = PoolPlan(
        (teacher.name,), num_cpus, num_gpus, wanted.accelerator_type, least, least, threads, least
    )
    return _Crew(pool, wanted, wanted.max_actors)


def _by_shape(crews: Iterable[_Crew]) -> list[_Crew]:
    """One crew for all teachers that ask for the same, where the first of them stood."""
    found: dict[tuple[ActorResources, float], _Crew] = {}
    for crew in crews:
        shape = crew.wanted, crew.pool.num_gpus  # which also depends on the teacher's device
        there = found.get(shape)
        found[shape] = crew if there is None else there.joined(crew)
    return list(found.values())


def _packed(crews: Sequence[_Crew], offered: Sequence[Resources]) -> list[list[_Crew]]:
    """Crews, in their order, into waves that fit; one that fits nowhere yet waits for new nodes.

    Nobody waits with it but those that wait for other GPUs: two that wait for the same could each hold half of it.
    """
    waves: list[list[_Crew]] = []
    room, awaited = Room(()), set[str | None]()
    for crew in crews:
        kind = crew.pool.accelerator_type
        if awaited and kind is not None and not awaited & {None, kind}:
            waves[-1].append(crew)
            awaited.add(kind)
            continue
        if awaited or not waves or not crew.pool.fits(room, crew.pool.min_actors):
            waves.append([])
            room, awaited = Room(offered), set()
            if not crew.pool.fits(room, crew.pool.min_actors):
                awaited = {kind}
        waves[-1].append(crew)
    return waves


def _check_fits(pool: PoolPlan, offered: Sequence[Resources], may_grow: bool) -> None:
    if pool.fits(Room(offered), pool.min_actors):
        return
    (name,) = pool.teachers
    where = "this cluster, grown as far as it may," if may_grow else "this machine"
    types = accelerator_types(offered)
    if pool.accelerator_type is not None and pool.accelerator_type not in types:
        there = ", ".join(sorted(types)) or "none"
        raise ResourceError(
            f"teacher {name!r} asks for accelerator type {pool.accelerator_type!r}, but {where} offers {there}; "
            "change its resources.accelerator_type or use another cluster"
        )
    cpus, gpus = (sum(node[kind] for node in offered) for kind in ("CPU", "GPU"))
    raise ResourceError(
        f"teacher {name!r} asks for {pool.num_cpus * pool.min_actors:g} CPUs and "
        f"{pool.num_gpus * pool.min_actors:g} GPUs, but {where} offers {cpus:g} and {gpus:g} beside "
        f"the {RESERVED_CPUS:g} CPUs that light tasks need; lower its resources or use a larger cluster"
    )


def _widened(
    wave: Sequence[_Crew], present: Sequence[Resources], offered: Sequence[Resources], known: bool
) -> list[PoolPlan]:
    """Let pools share, in turns, what the wave leaves free: now, and once all nodes are there that may come."""
    now, later = _filled(wave, present), _filled(wave, offered)
    pools = []
    for crew, first, last in zip(wave, now, later, strict=True):
        least = crew.pool.min_actors
        most = last if known else (_MOST_ACTORS if crew.limit is None else crew.limit)
        pools.append(replace(crew.pool, initial_actors=max(first, least), max_actors=max(most, first, least)))
    return pools


def _filled(wave: Sequence[_Crew], nodes: Sequence[Resources]) -> list[int]:
    """Actors of each crew when these nodes are full."""
    room = Room(nodes)
    actors = [crew.pool.min_actors if crew.pool.fits(room, crew.pool.min_actors) else 0 for crew in wave]
    growing = [place for place, crew in enumerate(wave) if actors[place]]
    while growing:
        growing = [
            place
            for place in growing
            if (wave[place].limit is None or actors[place] < (wave[place].limit or 0))
            and wave[place].pool.fits(room, 1)
        ]
        for place in growing:
            actors[place] += 1
    return actors
