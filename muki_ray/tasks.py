"""What is to be done about one shard, and when a folder is done: a teacher's evidence, the integration's supervision.

Knows the run folder and the paper's functions; knows no Ray, no Torch. Who runs it where is `pipeline.py`'s job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from muki_ray.config_method import AnyMethod, BaselineMethod, DropoutConfig
from muki_ray.corpus import Corpus
from muki_ray.errors import StoreError
from muki_ray.hashing import row_hash
from muki_ray.labels import LabelSpace
from muki_ray.learned import Learned, Rows, Sample, most_rows, must_learn, sample
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder, RunFolder, fingerprint, part_name
from muki_ray.supervision import SUPERVISION_FORMAT, supervise
from muki_ray.teachers.evidence import EVIDENCE_FORMAT, EvidenceArrays, drawn_with, from_table
from muki_ray.teachers.spec import TeacherSpec

# rows that the method learns from: more move no figure's third digit
SAMPLE_ROWS = 65_536
# and the shards they come from, spread evenly over the corpus
_SAMPLE_SHARDS = 512
_SAMPLE_SEED = 0x5A  # other rows than those that the student holds out


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
        name = part_name(shard)
        return from_table(folder.read_table(name), row_ids, folder.sub(name).shown)


def scoring_task(
    spec: TeacherSpec, method: AnyMethod, corpora: Sequence[Corpus], run: RunFolder
) -> ScoringTask:
    """A teacher's task; its folders are named by everything that changes the evidence."""
    draws = drawn_with(method.samples, method.dropout)
    folders = tuple(
        run.evidence(fingerprint([EVIDENCE_FORMAT, spec.fingerprint, corpus.fingerprint, *draws]))
        for corpus in corpora
    )
    return ScoringTask(spec, method.samples, method.dropout, tuple(corpora), folders)


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


@dataclass(frozen=True)
class Summary:
    """What the driver hears of one integrated shard."""

    rows: int
    quarantined: int
    weight_sum: float
    statistics: CorpusStatistics


@dataclass(frozen=True)
class IntegrationTask:
    """Evidence of all teachers about a shard of the corpus (their first) becomes supervision.

    Attributes:
        learned: what the method learned from the corpus; None where it compares scores as they are.
        first: learn from so many first shards; None: from a sample of all.
    """

    tasks: tuple[ScoringTask, ...]
    space: LabelSpace
    method: AnyMethod
    folder: Folder
    learned: Learned | None = None
    first: int | None = None

    @property
    def shards(self) -> int:
        """Shards of the corpus."""
        return self.tasks[0].corpora[0].shards

    def __call__(self, shard: int) -> Summary:
        table = self.tasks[0].corpora[0].read(shard)
        row_ids = table["row_id"].to_numpy()
        evidence = [task.read(0, shard, row_ids) for task in self.tasks]
        result = supervise(table, evidence, self.space, self.method, self.learned)
        self.folder.write_table(part_name(shard), result.table)
        if result.quarantine is not None:
            self.folder.write_table(f"quarantine-{shard:05d}.parquet", result.quarantine)
        rows = len(result.table)
        return Summary(rows, len(table) - rows, result.weight_sum, result.statistics)

    def sampled_shards(self) -> list[int]:
        """Shards that the sample to learn from comes from."""
        if self.first is not None:
            return list(range(self.first))
        return np.unique(
            np.linspace(0, self.shards - 1, min(self.shards, _SAMPLE_SHARDS)).astype(int)
        ).tolist()

    def sample(self, shard: int) -> Sample:
        """Some rows of a shard, to learn from: the same rows whatever the cluster's shape.

        Rows on which a teacher gave no finite answer stay out.
        """
        counts = self.tasks[0].corpora[0].rows_per_part
        share = most_rows(self.method, SAMPLE_ROWS) / max(
            1, sum(counts[one] for one in self.sampled_shards())
        )
        table = self.tasks[0].corpora[0].read(shard)
        row_ids = table["row_id"].to_numpy()
        evidence = [task.read(0, shard, row_ids) for task in self.tasks]
        chosen = np.all([one.finite() for one in evidence], axis=0)
        if share < 1:
            chosen &= row_hash(row_ids, _SAMPLE_SEED) < np.uint64(int(share * 2**64))
        rows = Rows([one.take(chosen) for one in evidence], table.filter(pa.array(chosen)))
        return sample(self.method, rows)


@dataclass
class Integrated:
    """What the shards add up to. Keeps three numbers a shard: the statistics are added up as they come."""

    statistics: CorpusStatistics
    shards: dict[int, tuple[int, int, float]] = field(default_factory=dict)

    def add(self, shard: int, summary: Summary) -> None:
        """Count a shard; one that was integrated twice counts once, the results are the same."""
        if shard in self.shards:
            return
        self.statistics = self.statistics.merge(summary.statistics)
        self.shards[shard] = summary.rows, summary.quarantined, summary.weight_sum


def first_shards(method: AnyMethod, rows_per_part: Sequence[int]) -> int | None:
    """Shards that suffice to learn from where training does not wait for the others.

    They have as many rows as the method learns from anyway. 0 where there is nothing to learn, neither how to compare
    scores nor the mean of the weights; None where that takes all shards.
    """
    if not must_learn(method) and method.weights == "raw":
        return 0
    enough = np.flatnonzero(np.cumsum(rows_per_part) >= most_rows(method, SAMPLE_ROWS))
    return int(enough[0]) + 1 if len(enough) and enough[0] + 1 < len(rows_per_part) else None


def supervision_folder(
    tasks: Sequence[ScoringTask],
    space: LabelSpace,
    method: AnyMethod,
    run: RunFolder,
    first: int | None = None,
    base: str | None = None,
) -> Folder:
    """Where the supervision of these teachers under this method lies. How the student is trained is not in the name.

    Args:
        first: see `IntegrationTask`.
        base: digest of the student's base model, where the method may ask what that makes of texts; None where it never asks.
    """
    named = {
        "score", "standardise", "cotraining", "abstain", "integration", "tau", "smoothing", "margin", "temperature",
    }  # fmt: skip
    if isinstance(method, BaselineMethod):
        named = {"kind", "temperature"}
    settings = method.model_dump(mode="json", include=named)
    evidence = [(task.name, task.folders[0].name, task.spec.labels.names) for task in tasks]
    learned_from: list[dict[str, Any]] = [] if base is None else [{"base": base}]
    learned_from += [] if first is None or not must_learn(method) else [{"first_shards": first}]
    return run.supervision(fingerprint([SUPERVISION_FORMAT, settings, space.names, evidence, *learned_from]))


def finish_supervision(task: IntegrationTask, done: Integrated) -> dict[str, Any]:
    """Write the supervision's manifest.

    Raises:
        StoreError: a shard is missing: then rows would be lost.
    """
    absent = sorted(set(range(task.shards)) - set(done.shards))
    if absent:
        raise StoreError(
            f"integration returned no summary for shard {absent[0]} ({len(absent)} of {task.shards}); run again"
        )
    ordered = [done.shards[shard] for shard in range(task.shards)]
    rows = [row_count for row_count, _, _ in ordered]
    content = {
        "format": SUPERVISION_FORMAT,
        "labels": list(task.space.names),
        "teachers": [t.name for t in task.tasks],
        "method": task.method.model_dump(mode="json"),
        "rows": sum(rows),
        "quarantined": sum(quarantined for _, quarantined, _ in ordered),
        "weight_mean": sum(weight_sum for _, _, weight_sum in ordered) / max(1, sum(rows)),
        "statistics": done.statistics.to_json(),
        "learned": task.learned.write(task.folder) if task.learned else None,
    }
    if task.learned and task.first is not None:
        content["learned_from"] = {"first_shards": task.first}
    task.folder.finish(content, rows)
    return {**content, "rows_per_part": rows}
