"""A plan as lines for people: one per teacher, one per pool of actors, what is shared, what it will cost.

Device-hours are of GPUs where a teacher has any, else of CPUs.

Pure: knows the plan's numbers, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from muki_ray.labels import LabelSpace
from muki_ray.planning import PoolPlan
from muki_ray.planning.estimate import Estimate, Pace
from muki_ray.progress import duration
from muki_ray.report.table import MISSING, aligned

if TYPE_CHECKING:
    from muki_ray.workflow.plan import Plan

_HEADER = (
    "teacher",
    "labels",
    "fingerprint",
    "to score",
    "stored",
    "rows/s",
    "MiB",
    "actor time",
    "device-hours",
)
# longer lists say how many more there are
_MOST_TEACHERS, _MOST_LABELS = 12, 6


def plan_lines(plan: Plan, space: LabelSpace, devices: Mapping[str, float], may_add: int) -> Iterator[str]:
    """The plan, line by line.

    Args:
        devices: resources that are there, by name (`CPU`, `GPU`).
        may_add: nodes that the cluster's autoscaler may add.
    """
    rows = sum(corpus.rows_out for corpus in plan.tasks[0].corpora)
    bad = sum(corpus.quarantined for corpus in plan.tasks[0].corpora)
    aside = f" ({bad:,} more set aside)" if bad else ""
    there = ", ".join(
        f"{devices[kind]:g} {_plural(kind, devices[kind])}" for kind in ("CPU", "GPU") if devices.get(kind)
    )
    grow = f", {may_add} more {_plural('node', may_add)} may come" if may_add else ""
    yield (
        f"plan: {len(plan.tasks)} {_plural('teacher', len(plan.tasks))}, {rows:,} rows{aside}, {len(space)} labels; "
        f"{there or 'no devices yet'}{grow}"
    )
    cost = plan.estimate
    cells = [_cells(plan, place, space, cost) for place in range(min(len(plan.tasks), _MOST_TEACHERS))]
    yield from (f"  {line}" for line in aligned(_HEADER, cells))
    if len(plan.tasks) > _MOST_TEACHERS:
        yield f"  ... and {len(plan.tasks) - _MOST_TEACHERS} more"
    yield from _in_common(space)
    for number, wave in enumerate(plan.waves, start=1):
        turn = f"wave {number}: " if len(plan.waves) > 1 else ""
        yield f"  {turn}{'; '.join(_pool(pool) for pool in wave)}"
    yield from (f"  waits for nodes that are not there yet: {line}" for line in plan.absent)
    if not plan.waves:
        yield "  nothing to score: all evidence is stored"
    elif cost is not None:
        gpus = f"{_hours(cost.gpu_hours)} GPU-hours and " if cost.gpu_hours else ""
        yield f"  scoring: about {duration(cost.seconds)}, {gpus}{_hours(cost.cpu_hours)} CPU-hours"
    elif plan.paces:
        yield "  scoring: no estimate; nodes that some teachers need are not there yet"


def _cells(plan: Plan, place: int, space: LabelSpace, cost: Estimate | None) -> tuple[str, ...]:
    task = plan.tasks[place]
    pace: Pace | None = plan.paces.get(task.name)
    spent = cost.teachers.get(task.name) if cost else None
    return (
        task.name,
        str(len(space.index[place])),
        task.spec.fingerprint[:8],
        f"{plan.to_score[task.name]:,}",
        f"{plan.stored[task.name]:,}",
        f"{pace.rows_per_s:,.0f}" if pace else MISSING,
        f"{pace.memory_mib:,.0f}" if pace else MISSING,
        duration(spent.actor_s) if spent else MISSING,
        _hours(spent.gpu_hours or spent.cpu_hours) if spent else MISSING,
    )


def _in_common(space: LabelSpace) -> Iterator[str]:
    """Labels that several teachers know: they are one label of the student."""
    shared = [name for name in space.names if len(space.owners(name)) > 1]
    if shared:
        more = f" and {len(shared) - _MOST_LABELS} more" if len(shared) > _MOST_LABELS else ""
        yield f"  labels that several teachers know: {', '.join(shared[:_MOST_LABELS])}{more}"


def _pool(pool: PoolPlan) -> str:
    gpus = f", {pool.num_gpus:g} {pool.accelerator_type or 'GPU'}" if pool.num_gpus else ""
    each = f"{pool.num_cpus:g} {_plural('CPU', pool.num_cpus)}{gpus}, {pool.threads} {_plural('thread', pool.threads)}"
    actors = f"{pool.initial_actors} {_plural('actor', pool.initial_actors)} ({each})"
    if len(pool.teachers) == 1:
        return f"{pool.teachers[0]}: {actors}"
    return f"{actors} for {len(pool.teachers)} teachers in turn"


def _plural(word: str, count: float) -> str:
    return word if count == 1 else f"{word}s"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.01 else "<0.01"
