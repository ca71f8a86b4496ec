"""One suite with one seed: its teachers, trained, and what they say about corpus and tests. All of it is cached.

Knows models and the cache folder; integrates nothing, judges nothing.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from quality_cache import arrays, digest
from quality_data import Material, places
from quality_models import MODELS, base
from quality_suites import AtScale
from quality_train import gold_table, recipe, train

from muki_ray.config import StudentConfig, TeacherConfig
from muki_ray.config_method import AnyMethod
from muki_ray.embedding import embed
from muki_ray.hub import content_hash
from muki_ray.labels import LabelSpace, join
from muki_ray.store import fingerprint
from muki_ray.student.model import inspect_student
from muki_ray.student.train import TRAINING_FORMAT
from muki_ray.teachers.evidence import EVIDENCE_FORMAT, EvidenceArrays, drawn_with
from muki_ray.teachers.loading import inspect, load
from muki_ray.teachers.scoring import Scorer
from muki_ray.teachers.spec import TeacherSpec

CORPUS = "corpus"
OUTSIDE = "outside"
Say = Callable[[str], None]


@dataclass
class Case:
    """Teachers of one suite and seed.

    Attributes:
        specs: the teachers, in the suite's order.
        space: their union.
        student_base: folder of the student's pretrained model.
        cache: where results are kept.
    """

    name: str
    seed: int
    material: Material
    settings: AtScale
    max_length: int
    specs: list[TeacherSpec]
    space: LabelSpace
    student_base: Path
    cache: Path
    _said: dict[str, tuple[list[EvidenceArrays], float]] = field(default_factory=dict)

    @property
    def student_rate(self) -> float:
        """Learning rate of the student."""
        assert self.settings.student_model is not None
        return self.settings.learning_rate or MODELS[self.settings.student_model].learning_rate

    def texts(self, where: str) -> list[str]:
        """Texts of the corpus, of a test, or from outside the labels."""
        frame = self._frame(where)
        texts: list[str] = frame["text"].tolist()
        return texts

    def truth(self, where: str) -> NDArray[np.int64]:
        """Places of the gold labels in the union, -1 where no teacher knows it. `[N]`."""
        frame = self._frame(where)
        return places(list(self.space.names), frame["label"])

    def _frame(self, where: str) -> pd.DataFrame:
        if where == OUTSIDE:
            assert self.material.outside is not None
            return self.material.outside
        return self.material.corpus if where == CORPUS else self.material.tests[where]

    def evidence(self, method: AnyMethod, where: str) -> tuple[list[EvidenceArrays], float]:
        """What each teacher says under the method's dropout, and the seconds that all of them took together."""
        draws = drawn_with(method.samples, method.dropout)
        key = fingerprint([where, *draws])
        if key not in self._said:
            found = [self._ask(spec, method, where, draws) for spec in self.specs]
            self._said[key] = [one for one, _ in found], sum(seconds for _, seconds in found)
        return self._said[key]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """What the student's base makes of texts, `[N, E]`."""
        student = inspect_student(
            StudentConfig(model=str(self.student_base), max_length=self.max_length), self.max_length
        )
        content = ["embedding", student.content, self.max_length, digest(texts)]

        def make() -> dict[str, NDArray[np.float32]]:
            found = embed(student, texts, torch.get_num_threads(), torch.cuda.is_available())
            return {} if found is None else {"embedded": found}

        return arrays(self.cache / "embeddings", content, make).get("embedded")

    def _ask(
        self, spec: TeacherSpec, method: AnyMethod, where: str, draws: list[Any]
    ) -> tuple[EvidenceArrays, float]:
        texts = self.texts(where)
        shard = 0 if where == CORPUS else 1 + list(self.material.tests).index(where)
        content = [EVIDENCE_FORMAT, spec.fingerprint, digest(texts), *draws[:2], shard, *draws[2:]]

        def score() -> dict[str, NDArray[np.float32]]:
            began = time.perf_counter()
            device = "cuda" if torch.cuda.is_available() else "cpu"
            # loaded anew: classical dropout changes its model
            scorer = Scorer(
                load(spec, device), samples=method.samples, dropout=method.dropout, seed_key=spec.fingerprint
            )
            said = scorer.score(texts, shard=shard)
            parts = {f.name: getattr(said, f.name) for f in fields(said) if getattr(said, f.name) is not None}
            return parts | {"seconds": np.array(time.perf_counter() - began, np.float32)}

        found = arrays(self.cache / "evidence", content, score)
        seconds = float(found.pop("seconds"))
        return EvidenceArrays(**found), seconds


def case(name: str, seed: int, material: Material, settings: AtScale, cache: Path, say: Say) -> Case:
    """Teachers trained, or found in the cache.

    Raises:
        UnavailableError: a pretrained model's packages are not installed.
    """
    texts = material.all_texts()
    assert settings.teacher_models and settings.student_model and settings.max_length
    bases = {
        model: base(model, settings.max_length, texts, cache)
        for model in {*settings.teacher_models, settings.student_model}
    }
    on_gpu = torch.cuda.is_available()
    specs = [
        _teacher(name, m, seed, material, settings, bases[model], cache, say)
        for m, model in enumerate(settings.teacher_models)
    ]
    return Case(
        name,
        seed,
        material,
        settings,
        settings.max_length,
        [spec.resolved(on_gpu) for spec in specs],
        join([spec.labels for spec in specs]),
        bases[settings.student_model],
        cache,
    )


def _teacher(
    suite: str, m: int, seed: int, material: Material, settings: AtScale, start: Path, cache: Path, say: Say
) -> TeacherSpec:
    assert settings.teacher_models and settings.max_length
    name, model = list(material.teachers)[m], settings.teacher_models[m]
    rows, labels = material.teachers[name], material.labels[name]
    rate = settings.learning_rate or MODELS[model].learning_rate
    training = recipe(settings.teacher_epochs[m], rate, seed)
    texts: Sequence[str] = rows["text"].tolist()
    truth = places(labels, rows["label"])
    content = [
        TRAINING_FORMAT,
        content_hash(start),
        settings.max_length,
        training.model_dump(mode="json"),
        labels,
    ]
    target = cache / "teachers" / f"{suite}-{name}-{fingerprint([*content, digest([*texts, truth])])}"
    fresh = not target.is_dir()
    table = gold_table(texts, truth, len(labels))
    trained = train(table, labels, start, settings.max_length, training, target)
    if fresh:
        say(f"teacher {name}: {model}, {len(labels)} labels, {len(rows)} rows ({trained.seconds:.0f}s)")
    return inspect(TeacherConfig(name=name, model=str(target), max_length=settings.max_length))
