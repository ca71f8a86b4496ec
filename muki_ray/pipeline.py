"""The Ray Data graph: shards stream through the teachers' actor pools to the integration map.

The only place that builds one. What flows between stages is one small row per shard (which corpus, which
shard, what went wrong): every stage reads the text it needs and writes what it makes through the store, so a retried or lost
block never redoes another teacher's work, and nothing large crosses the object store.

Contract of a teacher stage: write-through cache. Evidence for (teacher, shard) exists -> pass on. Else
compute, write, pass on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muki_ray import errors
from muki_ray.config import DropoutConfig, MukiMethod
from muki_ray.corpus import Corpus
from muki_ray.errors import StoreError, UserError
from muki_ray.labels import LabelSpace
from muki_ray.planning import LIGHT_TASK_CPUS, PoolPlan
from muki_ray.runtime import Messenger, ray, user_error
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder, RunFolder, fingerprint, part_name
from muki_ray.supervision import SUPERVISION_FORMAT, supervise
from muki_ray.teachers.evidence import EVIDENCE_FORMAT, EvidenceArrays, from_table, to_table
from muki_ray.teachers.spec import TeacherSpec

if TYPE_CHECKING:
    from muki_ray.teachers.scoring import Scorer

# a shard may take long on a small machine; a graph that makes no progress for this long is stuck
_STUCK_AFTER_S = 4 * 3600
# more shards than this share blocks, so that the driver's bookkeeping stays small
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class ScoringTask:
    """One teacher's work: which texts, under which dropout, into which folders.

    Attributes:
        corpora, folders: the corpora to score (the corpus, perhaps the test set) and where evidence goes.
    """

    spec: TeacherSpec
    samples: int
    dropout: DropoutConfig
    corpora: tuple[Corpus, ...]
    folders: tuple[Folder, ...]

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.spec.name

    def missing(self) -> list[tuple[int, int]]:
        """(corpus, shard) pairs without evidence."""
        gaps = []
        for c, (corpus, folder) in enumerate(zip(self.corpora, self.folders, strict=True)):
            if folder.manifest() is None:
                names = folder.names()
                gaps += [
                    (c, shard) for shard in range(len(corpus.rows_per_part)) if part_name(shard) not in names
                ]
        return gaps

    def read(self, corpus: int, shard: int, row_ids: np.ndarray) -> EvidenceArrays:
        """Evidence of one shard, checked to speak of these rows."""
        folder = self.folders[corpus]
        return from_table(folder.read_table(part_name(shard)), row_ids, folder.path(part_name(shard)))


def scoring_task(
    spec: TeacherSpec, method: MukiMethod, corpora: Sequence[Corpus], run: RunFolder
) -> ScoringTask:
    """A teacher's task; its folders are named by everything that changes the evidence.

    With no samples the dropout settings change nothing and stay out of the name.
    """
    dropout = method.dropout.model_dump(mode="json") if method.samples else None
    folders = tuple(
        run.evidence(
            fingerprint([EVIDENCE_FORMAT, spec.fingerprint, corpus.fingerprint, method.samples, dropout])
        )
        for corpus in corpora
    )
    return ScoringTask(spec, method.samples, method.dropout, tuple(corpora), folders)


class TeacherStage:
    """Ray Data actor: one teacher, its evidence store in front. Loads the model at the first shard it must score."""

    def __init__(self, task: ScoringTask, threads: int, messenger: Messenger) -> None:
        import torch  # not at the top: the integration's processes load this module, and need no Torch

        torch.set_num_threads(threads)
        self.task, self.messenger = task, messenger
        self.scorer: Scorer | None = None

    def _ready(self) -> Scorer:
        if self.scorer is None:
            import torch

            from muki_ray.teachers.loading import load
            from muki_ray.teachers.scoring import Scorer

            wanted = self.task.spec.device
            cuda = wanted == "cuda" or (
                wanted == "auto" and bool(ray.get_gpu_ids()) and torch.cuda.is_available()
            )
            classifier = load(self.task.spec, "cuda" if cuda else "cpu")
            self.scorer = Scorer(
                classifier,
                samples=self.task.samples,
                dropout=self.task.dropout,
                seed_key=self.task.spec.fingerprint,
            )
        return self.scorer

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        column = f"scored/{self.task.name}"
        if batch["error"][0]:
            return {**batch, column: np.zeros(1, dtype=np.int64)}
        try:
            scored = self._shard(int(batch["corpus"][0]), int(batch["shard"][0]))
        except UserError as error:
            return {**batch, "error": _encoded(error), column: np.zeros(1, dtype=np.int64)}
        return {**batch, column: np.array([scored], dtype=np.int64)}

    def _shard(self, corpus: int, shard: int) -> int:
        """Rows scored: all of the shard's, or 0 when its evidence was there."""
        folder = self.task.folders[corpus]
        if folder.has(part_name(shard)):
            return 0
        table = self.task.corpora[corpus].read(shard)
        texts = table["text"].to_pylist()
        pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
        scorer = self._ready()
        evidence = scorer.score(
            texts,
            pairs,
            shard=shard,
            progress=lambda rows: self.messenger.send("scored", (self.task.name, rows)),
        )
        folder.write_table(part_name(shard), to_table(table["row_id"].to_numpy(), evidence))
        return len(table)


@dataclass(frozen=True)
class IntegrationTask:
    """The map stage after the teachers: corpus 0 becomes supervision, other corpora pass."""

    tasks: tuple[ScoringTask, ...]
    space: LabelSpace
    method: MukiMethod
    folder: Folder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        summary = None
        if not batch["error"][0]:
            try:
                summary = self._shard(int(batch["corpus"][0]), int(batch["shard"][0]))
            except UserError as error:
                batch = {**batch, "error": _encoded(error)}
        return {**batch, "summary": np.array([json.dumps(summary)], dtype=object)}

    def _shard(self, corpus: int, shard: int) -> dict[str, Any] | None:
        if corpus != 0:
            return None
        table = self.tasks[0].corpora[0].read(shard)
        row_ids = table["row_id"].to_numpy()
        result = supervise(
            table, [task.read(0, shard, row_ids) for task in self.tasks], self.space, self.method
        )
        self.folder.write_table(part_name(shard), result.table)
        if result.quarantine is not None:
            self.folder.write_table(f"quarantine-{shard:05d}.parquet", result.quarantine)
        return {
            "rows": len(result.table),
            "quarantined": len(table) - len(result.table),
            "weight_sum": result.weight_sum,
            "statistics": result.statistics.to_json(),
        }


def supervision_folder(
    tasks: Sequence[ScoringTask], space: LabelSpace, method: MukiMethod, run: RunFolder
) -> Folder:
    """Where the supervision of these teachers under this method lies. Student-side settings are not in the name."""
    settings = method.model_dump(
        mode="json", include={"score", "integration", "tau", "margin", "temperature"}
    )
    evidence = [
        (task.name, task.folders[0].location.rsplit("/", 1)[-1], task.spec.labels.names) for task in tasks
    ]
    return run.supervision(fingerprint([SUPERVISION_FORMAT, settings, space.names, evidence]))


def score(
    tasks: Sequence[ScoringTask], waves: Sequence[Sequence[PoolPlan]], messenger: Messenger
) -> dict[str, int]:
    """Run the teacher stages of all waves but do not integrate; see `run_graph`."""
    scored: dict[str, int] = {}
    for wave in waves:
        for name, rows in run_graph(tasks, wave, None, messenger)[0].items():
            scored[name] = scored.get(name, 0) + rows
    return scored


def run_graph(
    tasks: Sequence[ScoringTask],
    wave: Sequence[PoolPlan],
    integration: IntegrationTask | None,
    messenger: Messenger,
) -> tuple[dict[str, int], dict[int, dict[str, Any]]]:
    """Stream shards through one wave of teachers and, if given, the integration map.

    Returns:
        Rows scored per teacher, and the integration's summary per shard of the corpus.

    Raises:
        UserError: a stage met something that the user can mend.
    """
    by_name = {task.name: task for task in tasks}
    gaps = {gap for pool in wave for gap in by_name[pool.teacher].missing()}
    if integration is not None:
        gaps |= {(0, shard) for shard in range(len(tasks[0].corpora[0].rows_per_part))}
    if not gaps:
        return {}, {}
    scored: dict[str, int] = {}
    summaries: dict[int, dict[str, Any]] = {}
    try:
        for row in _graph(
            sorted(gaps), [(by_name[pool.teacher], pool) for pool in wave], integration, messenger
        ):
            if row["error"]:
                raise _decoded_error(row["error"])
            for column, value in row.items():
                if column.startswith("scored/"):
                    name = column.removeprefix("scored/")
                    scored[name] = scored.get(name, 0) + int(value)
            summary = _decoded(row.get("summary"))
            if summary is not None:
                summaries[int(row["shard"])] = summary
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    return scored, summaries


def _encoded(error: UserError) -> np.ndarray:
    """An error that the user can mend, as a row: Ray would retry an exception, and lose its type on the way."""
    return np.array([json.dumps([type(error).__name__, str(error)])], dtype=object)


def _decoded_error(text: str) -> UserError:
    kind, message = json.loads(text)
    made: UserError = getattr(errors, kind)(message)
    return made


def _decoded(summary: Any) -> dict[str, Any] | None:
    return None if summary is None else json.loads(summary)


def _graph(
    gaps: list[tuple[int, int]],
    stages: list[tuple[ScoringTask, PoolPlan]],
    integration: IntegrationTask | None,
    messenger: Messenger,
) -> Iterable[dict[str, Any]]:
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []  # they warn of slow shards, which here is their nature
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S" not in os.environ:
        context.execution_no_progress_timeout_s = _STUCK_AFTER_S
    items = [{"corpus": corpus, "shard": shard, "error": ""} for corpus, shard in gaps]
    graph = ray.data.from_items(items, override_num_blocks=min(len(items), _MOST_BLOCKS))
    for task, pool in stages:
        options: dict[str, Any] = {"num_cpus": pool.num_cpus}
        if pool.num_gpus:
            options["num_gpus"] = pool.num_gpus
        if pool.accelerator_type:
            options["accelerator_type"] = pool.accelerator_type
        graph = graph.map_batches(
            TeacherStage,
            fn_constructor_args=(task, pool.threads, messenger),
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=pool.min_actors, max_size=max(pool.max_actors, pool.min_actors)
            ),
            **options,
        )
    if integration is not None:

        def integrate(
            batch: dict[str, np.ndarray],
        ) -> dict[str, np.ndarray]:  # a callable object would become an actor
            return integration(batch)

        graph = graph.map_batches(integrate, batch_size=1, num_cpus=LIGHT_TASK_CPUS)
    yield from graph.iter_rows()


def finish_evidence(tasks: Sequence[ScoringTask]) -> None:
    """Declare complete every evidence folder whose parts are all there."""
    for task in tasks:
        for corpus, folder in zip(task.corpora, task.folders, strict=True):
            if folder.manifest() is None:
                folder.finish(
                    {
                        "format": EVIDENCE_FORMAT,
                        "teacher": task.name,
                        "teacher_fingerprint": task.spec.fingerprint,
                        "corpus_fingerprint": corpus.fingerprint,
                        "samples": task.samples,
                        "dropout": task.dropout.model_dump(mode="json"),
                        "labels": list(task.spec.labels.names),
                        "dtype": task.spec.dtype,
                        "max_length": task.spec.max_length,
                    },
                    list(corpus.rows_per_part),
                )


def finish_supervision(
    folder: Folder, task: IntegrationTask, summaries: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    """Write the supervision's manifest from the shards' summaries.

    Raises:
        StoreError: a shard is missing: then rows would be lost.
    """
    shards = len(task.tasks[0].corpora[0].rows_per_part)
    absent = sorted(set(range(shards)) - set(summaries))
    if absent:
        raise StoreError(
            f"integration returned no summary for shard {absent[0]} ({len(absent)} of {shards}); run again"
        )
    ordered = [summaries[shard] for shard in range(shards)]
    statistics = CorpusStatistics.empty(len(task.tasks))
    for summary in ordered:
        statistics = statistics.merge(CorpusStatistics.from_json(summary["statistics"]))
    rows = [summary["rows"] for summary in ordered]
    content = {
        "format": SUPERVISION_FORMAT,
        "labels": list(task.space.names),
        "teachers": [t.name for t in task.tasks],
        "method": task.method.model_dump(mode="json"),
        "rows": sum(rows),
        "quarantined": sum(summary["quarantined"] for summary in ordered),
        "weight_mean": sum(summary["weight_sum"] for summary in ordered) / max(1, sum(rows)),
        "statistics": statistics.to_json(),
    }
    folder.finish(content, rows)
    return {**content, "rows_per_part": rows}
