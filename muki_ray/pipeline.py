"""Who scores and integrates, on Ray: one Ray Data graph, a branch per teacher, integration behind it.

The only place that builds one. What flows is one small row per teacher and shard (whose, which corpus, which
shard, what went wrong): every stage reads the text it needs and writes what it makes through the store, so a
retried or lost block never redoes another teacher's work, and nothing large crosses the object store.

A teacher never waits for another: each has a branch of its own, with the shards that it has not scored. As soon as
the last of them has scored a shard, the driver sends the shard to integration.

Contract of a teacher stage: write-through cache. Evidence for (teacher, shard) exists -> pass on. Else
compute, write, pass on.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from muki_ray import errors
from muki_ray.errors import UserError
from muki_ray.learned import Learned, Sample, learn
from muki_ray.planning import LIGHT_TASK_CPUS, PoolPlan, light_tasks
from muki_ray.runtime import Messenger, ray, user_error
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import part_name
from muki_ray.tasks import (
    Integrated,
    IntegrationTask,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    scoring_task,
    supervision_folder,
)
from muki_ray.teachers.evidence import EvidenceArrays, to_table

if TYPE_CHECKING:
    import pyarrow as pa

    from muki_ray.teachers.scoring import Scorer

__all__ = [
    "Integrated",
    "IntegrationTask",
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
# one shard at the model, one being read or written
_SHARDS_AT_ONCE = 2


class TeacherStage:
    """Ray Data actor: one teacher, its evidence store in front.

    Loads the model while Ray still starts the rest; a failure shows at the first shard. The model works on one
    thread of its own, so that the next shard is read and the last one written meanwhile.
    """

    def __init__(self, task: ScoringTask, threads: int, messenger: Messenger) -> None:
        self.task, self.messenger = task, messenger
        self.engine = ThreadPoolExecutor(1, "muki-ray-engine")
        self.scorer: Future[Scorer] = self.engine.submit(self._load, threads)

    def _load(self, threads: int) -> Scorer:
        import torch  # not at the top: the integration's processes load this module, and need no Torch

        from muki_ray.teachers.loading import load
        from muki_ray.teachers.scoring import Scorer

        torch.set_num_threads(threads)  # Torch keeps it per thread
        wanted = self.task.spec.device
        cuda = wanted == "cuda" or (
            wanted == "auto" and bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        )
        classifier = load(self.task.spec, "cuda" if cuda else "cpu")
        return Scorer(
            classifier,
            samples=self.task.samples,
            dropout=self.task.dropout,
            seed_key=self.task.spec.fingerprint,
        )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            scored, error = self._shard(int(batch["corpus"][0]), int(batch["shard"][0])), ""
        except UserError as known:
            scored, error = 0, _encoded(known)
        return {
            **batch,
            "scored": np.array([scored], dtype=np.int64),
            "error": np.array([error], dtype=object),
        }

    def _shard(self, corpus: int, shard: int) -> int:
        """Rows scored: all of the shard's, or 0 when its evidence was there."""
        folder = self.task.folders[corpus]
        if folder.has(part_name(shard)):
            return 0
        table = self.task.corpora[corpus].read(shard)
        evidence = self.engine.submit(self._evidence, table, shard).result()
        folder.write_table(part_name(shard), to_table(table["row_id"].to_numpy(), evidence))
        return len(table)

    def _evidence(self, table: pa.Table, shard: int) -> EvidenceArrays:
        return self.scorer.result().score(
            table["text"].to_pylist(),
            table["text_pair"].to_pylist() if "text_pair" in table.column_names else None,
            shard=shard,
            progress=lambda rows: self.messenger.send("scored", (self.task.name, rows)),
        )


def learn_from_corpus(task: IntegrationTask) -> Learned:
    """What the method has to learn first, from a sample of the corpus and of all teachers' evidence.

    Raises:
        TeacherError: no row of the sample has a finite answer from every teacher.
    """

    def sample(task: IntegrationTask, shard: int) -> Sample:
        return task.sample(shard)

    run = ray.remote(sample).options(num_cpus=LIGHT_TASK_CPUS, max_retries=3)
    reference = ray.put(task)
    parts = ray.get([run.remote(reference, shard) for shard in task.sampled_shards()])
    if not any(len(part.scores_SM) for part in parts):
        raise errors.TeacherError(
            f"no row of the corpus has a finite answer from all {len(task.tasks)} teachers; score them one by one to find which fails"
        )
    return learn(task.method, parts)


class _Integrator:
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
    tasks: Sequence[ScoringTask], waves: Sequence[Sequence[PoolPlan]], messenger: Messenger
) -> dict[str, int]:
    """Run the teacher stages of all waves but do not integrate; see `run_graph`."""
    scored: Counter[str] = Counter()
    for wave in waves:
        scored.update(run_graph(tasks, wave, None, messenger)[0])
    return dict(scored)


def run_graph(
    tasks: Sequence[ScoringTask],
    wave: Sequence[PoolPlan],
    integration: IntegrationTask | None,
    messenger: Messenger,
) -> tuple[dict[str, int], Integrated | None]:
    """Stream shards through one wave of teachers and, if given, on to integration.

    Returns:
        Rows scored per teacher, and what the integrated shards add up to.

    Raises:
        UserError: a stage met something that the user can mend.
    """
    by_name = {task.name: task for task in tasks}
    stages = [(by_name[pool.teacher], pool) for pool in wave]
    gaps = {task.name: task.missing() for task, _ in stages}
    scored: Counter[str] = Counter()
    try:
        integrator = None
        if integration is not None:
            integrator = _Integrator(integration, light_tasks(ray.cluster_resources()))
            # of each shard, the teachers whose evidence is still to come
            waiting = Counter(shard for pairs in gaps.values() for corpus, shard in pairs if corpus == 0)
            complete = [shard for shard in range(integration.shards) if shard not in waiting]
        for row in _graph(stages, gaps, messenger) if any(gaps.values()) else ():
            if row["error"]:
                raise _decoded(row["error"])
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


def _encoded(error: UserError) -> str:
    """An error that the user can mend, as a row: Ray would retry an exception, and lose its type on the way."""
    return json.dumps([type(error).__name__, str(error)])


def _decoded(text: str) -> UserError:
    kind, message = json.loads(text)
    made: UserError = getattr(errors, kind)(message)
    return made


def _graph(
    stages: Sequence[tuple[ScoringTask, PoolPlan]],
    gaps: dict[str, list[tuple[int, int]]],
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
    branches = [_branch(task, pool, gaps[task.name], messenger) for task, pool in stages if gaps[task.name]]
    yield from (branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]).iter_rows()


def _branch(task: ScoringTask, pool: PoolPlan, gaps: list[tuple[int, int]], messenger: Messenger) -> Any:
    """One teacher's shards through its pool."""
    import ray.data
    from ray.data import ActorPoolStrategy

    items = [{"teacher": task.name, "corpus": corpus, "shard": shard} for corpus, shard in gaps]
    options: dict[str, Any] = {"num_cpus": pool.num_cpus}
    if pool.num_gpus:
        options["num_gpus"] = pool.num_gpus
    if pool.accelerator_type:
        options["accelerator_type"] = pool.accelerator_type
    return ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS)).map_batches(
        TeacherStage,
        fn_constructor_args=(task, pool.threads, messenger),
        batch_size=1,
        compute=ActorPoolStrategy(
            min_size=pool.min_actors,
            max_size=max(pool.max_actors, pool.min_actors),
            max_concurrent_calls_per_actor=_SHARDS_AT_ONCE,
            max_tasks_in_flight_per_actor=_SHARDS_AT_ONCE + 1,
            enable_true_multi_threading=True,
        ),
        **options,
    )
