"""The suites of the quality benchmark: who teaches what, on which texts, at which scale. YAML in `suites/`.

Knows pydantic and YAML; opens no data, loads no model. Every figure that all suites share is in this file.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from quality_models import MODELS

from muki_ray.config_input import first_problem, read_yaml
from muki_ray.config_section import Count, Fraction, Positive, Section
from muki_ray.errors import ConfigError

FOLDER = Path(__file__).with_name("suites")
Scale = Literal["tiny", "small", "full"]
SCALES: tuple[Scale, ...] = ("tiny", "small", "full")
# per scale: the model of teachers and student, and at most so many rows to train on and to test on
SCALE_MODEL = {"tiny": "bert-tiny", "small": "minilm-l6", "full": "minilm-l6"}
TRAIN_ROWS: dict[str, int | None] = {"tiny": 3000, "small": 4000, "full": None}
TEST_ROWS: dict[str, int | None] = {"tiny": 1000, "small": 1000, "full": None}


def _as_list(value: object) -> object:
    return [value] if isinstance(value, (str, int)) else value


Values = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Each = Annotated[list[Count], BeforeValidator(_as_list), Field(min_length=1)]


class Texts(Section):
    """Labelled rows of a data set: those whose columns have one of the values named."""

    data: str = Field(description="folder of the data set")
    where: dict[str, Values] = Field(default={}, description="column: values that count")
    split: str | None = Field(default=None, description="file of it; default: train or test, as the use is")


class Part(Texts):
    """One teacher: these rows, as far as they have one of its labels (default: all labels of the rows)."""

    name: str
    labels: list[str] | None = None


class Deal(Section):
    """Teachers `t1`, `t2`, ...: blocks of the sorted values of a column, as the paper's released code deals them.

    Each block has `n // into` values, the last one the remainder too.
    """

    data: str
    by: str = "label"
    into: Count
    leave_out: list[str] = Field(
        default=[], description="values that no teacher gets; their rows stay in the corpus"
    )

    def blocks(self, values: list[str]) -> dict[str, list[str]]:
        """Teacher's name -> its values.

        Raises:
            ConfigError: a value to leave out that the column does not have, or fewer values than teachers.
        """
        unknown = sorted(set(self.leave_out) - set(values))
        if unknown:
            raise ConfigError(
                f"leave_out: {unknown[0]!r} is no value of column {self.by!r}; check the spelling"
            )
        own = sorted(set(values) - set(self.leave_out))
        size = len(own) // self.into
        if not size:
            raise ConfigError(f"into: {self.into} teachers, but only {len(own)} values of column {self.by!r}")
        cuts = [size * m for m in range(self.into)] + [len(own)]
        return {f"t{m + 1}": own[cuts[m] : cuts[m + 1]] for m in range(self.into)}


class AtScale(Section):
    """What one scale needs; None: what the scale, or the model, says."""

    teacher_epochs: Each = Field(description="one, or one per teacher")
    student_epochs: Count
    max_length: Count | None = Field(default=None, description="default: the suite's")
    teacher_models: list[str] | None = Field(default=None, description="one, or one per teacher")
    student_model: str | None = None
    learning_rate: Positive | None = Field(default=None, description="default: each model's own")
    train_rows: Count | None = Field(default=None, description="rows drawn for teachers and corpus")
    test_rows: Count | None = Field(default=None, description="rows of each test")

    @model_validator(mode="after")
    def _known(self) -> AtScale:
        for name in [*(self.teacher_models or []), *([self.student_model] if self.student_model else [])]:
            if name not in MODELS:
                raise ValueError(f"no model {name!r}; choose from {', '.join(MODELS)}")
        return self


class Suite(Section):
    """One data set, or several, dealt to teachers; the corpus; the tests.

    Attributes:
        corpus: default: what the teachers' rows are drawn from. Its labels are hidden.
        shares: teacher -> share of the corpus rows that it alone owns; the others share the rest evenly.
        tests: name -> rows of the official test split; the first one is what methods are compared on. Default:
            those of the corpus' data sets. Rows whose label no teacher knows are left out.
        outside: texts that are about no label of any teacher; a good student is less sure of them.
    """

    about: str
    teachers: Deal | Annotated[list[Part], Field(min_length=2)]
    corpus: list[Texts] | None = None
    shares: dict[str, Fraction] = Field(default={})
    tests: Annotated[dict[str, list[Texts]], Field(min_length=1)] | None = None
    outside: list[Texts] = Field(default=[])
    max_length: Count = Field(description="tokens")
    tiny: AtScale
    small: AtScale
    full: AtScale

    @cached_property
    def names(self) -> list[str]:
        """The teachers, in order."""
        if isinstance(self.teachers, Deal):
            return [f"t{m + 1}" for m in range(self.teachers.into)]
        return [part.name for part in self.teachers]

    def at(self, scale: Scale) -> AtScale:
        """The settings of a scale, lists as long as there are teachers; None are `learning_rate` and rows of `full`."""
        one: AtScale = getattr(self, scale)
        models = one.teacher_models or [SCALE_MODEL[scale]]
        count = len(self.names)
        return one.model_copy(
            update={
                "teacher_models": models * count if len(models) == 1 else models,
                "teacher_epochs": one.teacher_epochs * count
                if len(one.teacher_epochs) == 1
                else one.teacher_epochs,
                "max_length": one.max_length or self.max_length,
                "student_model": one.student_model or SCALE_MODEL[scale],
                "train_rows": one.train_rows or TRAIN_ROWS[scale],
                "test_rows": one.test_rows or TEST_ROWS[scale],
            }
        )

    @property
    def sources(self) -> list[Texts]:
        """Where the corpus comes from."""
        if self.corpus is not None:
            return self.corpus
        if isinstance(self.teachers, Deal):
            return [Texts(data=self.teachers.data)]
        sources: list[Texts] = []
        for part in self.teachers:
            source = Texts(data=part.data, where=part.where)
            if source not in sources:
                sources.append(source)
        return sources

    @property
    def all_tests(self) -> dict[str, list[Texts]]:
        """Name -> rows of the test split."""
        return self.tests if self.tests is not None else {"test": self.sources}

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"teachers' names must differ, got {', '.join(self.names)}")
        unknown = sorted(set(self.shares) - set(self.names))
        if unknown:
            raise ValueError(f"shares: no teacher {unknown[0]!r}; there are {', '.join(self.names)}")
        if sum(self.shares.values()) > 1:
            raise ValueError(f"shares add up to {sum(self.shares.values()):g}; they must not exceed 1")
        for scale in SCALES:
            for setting in ("teacher_models", "teacher_epochs"):
                given = getattr(getattr(self, scale), setting) or [None]
                if len(given) not in (1, len(self.names)):
                    problem = f"{len(given)} {setting} for {len(self.names)} teachers; give 1 or all"
                    raise ValueError(f"{scale}: {problem}")
        return self


def load(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ConfigError: there is none, or its file is not as it must be; one line.
    """
    if name not in names():
        raise ConfigError(f"no suite {name!r}; choose from {', '.join(names())}, or all")
    try:
        return Suite.model_validate(read_yaml(str(FOLDER / f"{name}.yaml")))
    except ValidationError as error:
        raise ConfigError(f"suite {name}: {first_problem(error)}") from error


def names() -> list[str]:
    """All suites there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


if __name__ == "__main__":
    for one in names():
        sys.stdout.write(f"{one:28} {load(one).about}\n")
