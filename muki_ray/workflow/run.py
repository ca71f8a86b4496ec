"""What the stages of one run share, and what a run returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from muki_ray.config import IntegrateConfig
from muki_ray.corpus import Corpus
from muki_ray.labels import LabelSpace
from muki_ray.store import RunFolder
from muki_ray.student.model import StudentSpec
from muki_ray.tasks import first_shards
from muki_ray.teachers.loading import TeacherSpec
from muki_ray.tracking import Tracker


@dataclass(frozen=True)
class RunResult:
    """Where the student lies, and what was measured."""

    student: str
    metrics: dict[str, Any]
    summary: str


@dataclass
class Run:
    """What the stages of one run share. `corpora`: the corpus, then the test set if there is one."""

    config: IntegrateConfig
    folder: RunFolder
    specs: list[TeacherSpec]
    space: LabelSpace
    student: StudentSpec
    corpora: list[Corpus]
    tracker: Tracker
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def corpus(self) -> Corpus:
        """The unlabeled text."""
        return self.corpora[0]

    @property
    def first_shards(self) -> int | None:
        """Shards of the corpus that a streaming run learns from; None: it waits for all."""
        if self.config.training.start == "after":
            return None
        return first_shards(self.config.method, self.corpus.rows_per_part)
