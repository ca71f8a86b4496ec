"""Who scores and integrates, on Ray: one Ray Data graph, a branch per pool of actors, integration behind it.

The only place that builds one. What flows is small rows that name a teacher and shards (and then, what went wrong):
every stage reads the text it needs and writes what it makes through the store, so a retried or lost block never redoes
another teacher's work, and nothing large crosses the object store.

Where there is room for all, a teacher never waits for another: each has a branch of its own, with the shards that it
has not scored. Where there is not, teachers take turns at the actors of one branch. As soon as the last teacher has
scored a shard, the driver sends the shard to integration.

Contract of a teacher stage: write-through cache. Evidence for (teacher, shard) exists -> pass on. Else
compute, write, pass on.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from muki_ray.embedding_view import Embed
from muki_ray.errors import TeacherError
from muki_ray.learned import Learned, Sample, learn
from muki_ray.planning import LIGHT_TASK_CPUS, PoolPlan, light_tasks
from muki_ray.runtime import Messenger, ray, user_error
from muki_ray.stage import SHARDS_AT_ONCE, TeacherStage, decoded
from muki_ray.statistics import CorpusStatistics
from muki_ray.tasks import (
    Integrated,
    IntegrationTask,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    scoring_task,
    supervision_folder,
)

__all__ = [
    "Integrated",
    "IntegrationTask",
    "Integrator",
    "ScoringTask",
    "finish_evidence",
    "finish_supervision",
    "learn_from_corpus",
    "run_graph",
    "score",
    "scoring_task",
    "supervision_folder",
]

# a shard may take long on a small machine; a graph that makes no progress for this long is stuck
_STUCK_AFTER_S = 4 * 3600
# more shards than this share blocks, so that the driver's bookkeeping stays small
_MOST_BLOCKS = 4096
# where teachers take turns: rows of the graph per actor, so that all actors end at about the same time
_TURNS = 8
# and shards of one such row at most: what is counted as done, and seen to go on, is whole rows
_MOST_SHARDS = 64


def learn_from_corpus(task: IntegrationTask, embed: Embed | None = None) -> Learned:
    """What the method has to learn first, from a sample of the corpus and of all teachers' evidence.

    Args:
        embed: see `learn`.

    Raises:
        TeacherError: no row of the sample has a finite answer from every teacher.
    """

    def sample(task: IntegrationTask, shard: int) -> Sample:
        return task.sample(shard)

    run = ray.remote(sample).options(num_cpus=LIGHT_TASK_CPUS, max_retries=3)
    reference, at_once = ray.put(task), light_tasks(ray.cluster_resources())
    waiting: list[Any] = []
    parts: list[Sample] = []
    for shard in task.sampled_shards():
        if len(waiting) == at_once:  # sent all at once, each would want a process of its own
            parts.append(ray.get(waiting.pop(0)))
        waiting.append(run.remote(reference, shard))
    parts += ray.get(waiting)
    if not any(len(part.scores_SM) for part in parts):
        raise TeacherError(
            f"no row of the corpus has a finite answer from all {len(task.tasks)} teachers; score them one by one to find which fails"
        )
    return learn(task.method, parts, embed)


class Integrator:
    """Sends shards to integration as Ray tasks, a few at a time, and adds up what they say."""

    def __init__(self, task: IntegrationTask, at_once: int) -> None:
        def integrate(task: IntegrationTask, shard: int) -> Any:
            return task(shard)

        self._run = ray.remote(integrate).options(num_cpus=LIGHT_TASK_CPUS, max_retries=3)
        self._task = ray.put(task)
        self._at_once = at_once
        self._running: dict[Any, int] = {}
        self.done = Integrated(CorpusStatistics.empty(len(task.tasks)))

    def send(self, shard: int) -> None:
        """Integrate a shard whose evidence is complete; waits while too many are under way."""
        self.wait(self._at_once - 1)
        self._running[self._run.remote(self._task, shard)] = shard

    def wait(self, left: int) -> None:
        """Take results until no more than so many shards are under way."""
        while len(self._running) > left:
            ready, _ = ray.wait(list(self._running), num_returns=1)
            self.done.add(self._running.pop(ready[0]), ray.get(ready[0]))


def score(
    tasks: Sequence[ScoringTask],
    waves: Sequence[Sequence[PoolPlan]],
    messenger: Messenger,
    stop: threading.Event | None = None,
) -> dict[str, int]:
    """Run the teacher stages of all waves but do not integrate; see `run_graph`."""
    scored: Counter[str] = Counter()
    for wave in waves:
        scored.update(run_graph(tasks, wave, None, messenger, stop)[0])
    return dict(scored)


def run_graph(
    tasks: Sequence[ScoringTask],
    wave: Sequence[PoolPlan],
    integration: IntegrationTask | None,
    messenger: Messenger,
    stop: threading.Event | None = None,
) -> tuple[dict[str, int], Integrated | None]:
    """Stream shards through one wave of teachers and, if given, on to integration.

    Args:
        stop: once set, no more than the next shard is waited for.

    Returns:
        Rows scored per teacher, and what the integrated shards add up to.

    Raises:
        UserError: a stage met something that the user can mend.
    """
    by_name = {task.name: task for task in tasks}
    stages = [(pool, [by_name[name] for name in pool.teachers]) for pool in wave]
    gaps = {task.name: task.missing() for _, crew in stages for task in crew}
    scored: Counter[str] = Counter()
    try:
        integrator = None
        if integration is not None:
            integrator = Integrator(integration, light_tasks(ray.cluster_resources()))
            # of each shard, the teachers whose evidence is still to come
            waiting = Counter(shard for pairs in gaps.values() for corpus, shard in pairs if corpus == 0)
            complete = [shard for shard in range(integration.shards) if shard not in waiting]
        for row in _graph(stages, gaps, messenger) if any(gaps.values()) else ():
            if stop is not None and stop.is_set():
                break
            if row["error"]:
                raise decoded(row["error"])
            scored[row["teacher"]] += int(row["scored"])
            if integrator is not None and row["corpus"] == 0:
                waiting[row["shard"]] -= 1
                if not waiting[row["shard"]]:
                    integrator.send(int(row["shard"]))
        if integrator is not None:
            for shard in complete:
                integrator.send(shard)
            integrator.wait(0)
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    return dict(scored), integrator.done if integrator is not None else None


def _graph(
    stages: Sequence[tuple[PoolPlan, Sequence[ScoringTask]]],
    gaps: Mapping[str, Sequence[tuple[int, int]]],
    messenger: Messenger,
) -> Iterable[dict[str, Any]]:
    """Rows as they are finished: teacher, corpus, shard, scored (rows), error."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # they warn of slow shards, which here is their nature
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S" not in os.environ:
        context.execution_no_progress_timeout_s = _STUCK_AFTER_S
    branches = [
        _branch(pool, crew, gaps, messenger) for pool, crew in stages if any(gaps[task.name] for task in crew)
    ]
    yield from (branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]).iter_rows()


def _branch(
    pool: PoolPlan,
    crew: Sequence[ScoringTask],
    gaps: Mapping[str, Sequence[tuple[int, int]]],
    messenger: Messenger,
) -> Any:
    """The shards of a pool's teachers through its actors."""
    import ray.data
    from ray.data import ActorPoolStrategy

    items = turns({task.name: gaps[task.name] for task in crew}, pool.max_actors)
    options: dict[str, Any] = {"num_cpus": pool.num_cpus}
    if pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.accelerator_type:
        options["accelerator_type"] = pool.accelerator_type
    # a crew's actor has one teacher in memory, and so one row of the graph in hand
    at_once = SHARDS_AT_ONCE if len(crew) == 1 else 1
    most = max(pool.min_actors, min(pool.max_actors, len(items)))
    return ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
        TeacherStage,
        fn_constructor_args=(crew, pool.threads, messenger),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=pool.min_actors,
            max_size=most,
            initial_size=min(pool.initial_actors, most),
            max_concurrent_calls_per_actor=at_once,
            max_tasks_in_flight_per_actor=at_once + 1,
            enable_true_multi_threading=True,
        ),
        **options,
    )


def turns(gaps: Mapping[str, Sequence[tuple[int, int]]], actors: int) -> list[dict[str, Any]]:
    """Rows of the graph: a teacher, a corpus, and shards of it as JSON.

    One teacher's shards go one by one. Of several teachers, as many of one go together as can without leaving other
    actors idle at the end: whoever takes them loads the teacher once.

    Args:
        gaps: (corpus, shard) pairs to score, by teacher.
    """
    shards = sum(map(len, gaps.values()))
    together = 1 if len(gaps) == 1 else min(max(1, shards // (_TURNS * actors)), _MOST_SHARDS)
    rows = []
    for teacher, pairs in gaps.items():
        by_corpus: dict[int, list[int]] = {}
        for corpus, shard in pairs:
            by_corpus.setdefault(corpus, []).append(shard)
        for corpus, missing in by_corpus.items():
            rows += [
                {"teacher": teacher, "corpus": corpus, "shards": json.dumps(missing[i : i + together])}
                for i in range(0, len(missing), together)
            ]
    return rows
