"""The plan of a run: who scores what where, what is there already, and what the rest will cost.

`integrate` follows it, `plan` shows it. Knows the stages' tasks and the cluster; starts no teacher but for a short look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from muki_ray.config import IntegrateConfig
from muki_ray.corpus import Corpus
from muki_ray.pipeline import ScoringTask, turns
from muki_ray.planning import PoolPlan, plan_waves, waiting
from muki_ray.planning.estimate import Estimate, Pace, estimate
from muki_ray.probe import Crew, probe
from muki_ray.runtime import Cluster

# texts that a teacher is measured on, at most
_PROBE_ROWS = 512
# fewer rows to score, over all teachers, are scored before a measurement would pay
WORTH_MEASURING = 100_000


@dataclass(frozen=True)
class Plan:
    """Scoring, planned.

    Attributes:
        tasks: of all teachers.
        waves: pools of those that have something to score.
        to_score, stored: rows by teacher, over all corpora; what is stored costs nothing.
        loads: times that an actor turns to a teacher.
        absent: what pools ask for that no node has yet, for people.
        paces: by teacher, once measured; None for one that found no place to be measured at.
    """

    tasks: tuple[ScoringTask, ...]
    waves: list[list[PoolPlan]]
    to_score: dict[str, int]
    stored: dict[str, int]
    loads: dict[str, int]
    absent: tuple[str, ...] = ()
    paces: dict[str, Pace | None] = field(default_factory=dict)

    @property
    def estimate(self) -> Estimate | None:
        """What it will cost; None where not all was measured."""
        paces = {name: pace for name, pace in self.paces.items() if pace is not None}
        if any(name not in paces for wave in self.waves for pool in wave for name in pool.teachers):
            return None
        return estimate(self.waves, paces, self.to_score, self.loads)


def draw_up(config: IntegrateConfig, tasks: Sequence[ScoringTask], cluster: Cluster) -> Plan:
    """Look at what is stored, and pack the rest.

    Raises:
        ResourceError: a teacher fits no node.
    """
    gaps = {task.name: task.missing() for task in tasks}
    to_score = {
        task.name: sum(task.corpora[c].rows_per_part[shard] for c, shard in gaps[task.name]) for task in tasks
    }
    rows = sum(corpus.rows_out for corpus in tasks[0].corpora)
    waves = plan_waves(
        [teacher for teacher in config.teachers if gaps[teacher.name]],
        cluster.resources,
        may_grow=cluster.may_grow,
        nodes=cluster.nodes,
        may_add=cluster.may_add,
    )
    loads = {}
    for pool in (pool for wave in waves for pool in wave):
        items = turns({name: gaps[name] for name in pool.teachers}, pool.max_actors)
        for name in pool.teachers:
            own = sum(item["teacher"] == name for item in items)
            loads[name] = own if len(pool.teachers) > 1 else min(pool.initial_actors, own)
    stored = {name: rows - missing for name, missing in to_score.items()}
    pools = [pool for wave in waves for pool in wave]
    absent = tuple(waiting(pools, cluster.nodes or (cluster.resources,)))
    return Plan(tuple(tasks), waves, to_score, stored, loads, absent)


def measured(plan: Plan) -> Plan:
    """The plan with the pace of every teacher: one of each kind is looked at, as many at once as there will be actors.

    Raises:
        UserError: a teacher cannot be loaded.
    """
    tasks = {task.name: task for task in plan.tasks}
    texts, pairs = _some_rows(plan.tasks[0].corpora[0])
    paces: dict[tuple[object, ...], Pace | None] = {}
    found: dict[str, Pace | None] = {}
    for wave in plan.waves:
        kinds = {name: _kind(tasks[name], pool) for pool in wave for name in pool.teachers}
        if not all(kind in paces for kind in kinds.values()):
            seen = probe([_crew(plan, pool, tasks, kinds) for pool in wave], texts, pairs)
            for kind in set(kinds.values()):
                alike = [pace for name, pace in seen.items() if kinds[name] == kind]
                paces[kind] = _middle(alike)
        found.update({name: paces[kind] for name, kind in kinds.items()})
    return replace(plan, paces=found)


def _crew(
    plan: Plan, pool: PoolPlan, tasks: Mapping[str, ScoringTask], kinds: Mapping[str, tuple[object, ...]]
) -> Crew:
    """One teacher of each kind, on as many actors as will be at work."""
    each = {kinds[name]: tasks[name] for name in reversed(pool.teachers)}
    actors = min(pool.initial_actors, sum(plan.loads[name] for name in pool.teachers))
    return Crew(pool, list(each.values()), max(1, actors))


def _some_rows(corpus: Corpus) -> tuple[list[str], list[str] | None]:
    """Rows of the first shard, spread evenly."""
    table = corpus.read(0)
    places = np.unique(np.linspace(0, len(table) - 1, min(_PROBE_ROWS, len(table))).astype(int))
    table = table.take(places)
    return table["text"].to_pylist(), table["text_pair"].to_pylist() if corpus.pair else None


def _kind(task: ScoringTask, pool: PoolPlan) -> tuple[object, ...]:
    """Teachers and actors that are equally fast."""
    actor = pool.num_cpus, pool.num_gpus, pool.accelerator_type, pool.threads, len(pool.teachers) > 1
    return task.spec.kind, task.spec.max_length, task.spec.dtype, *actor


def _middle(paces: Sequence[Pace]) -> Pace | None:
    if not paces:
        return None
    return Pace(
        *(
            median(getattr(pace, name) for pace in paces)
            for name in ("start_s", "load_s", "rows_per_s", "memory_mib")
        )
    )
