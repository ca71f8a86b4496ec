"""Before any device is taken: settle paths, inspect models, read texts."""

from __future__ import annotations

import os
from pathlib import Path

from muki_ray import filesystem as locations
from muki_ray.assess import check_test_labels, shared_labels
from muki_ray.config import IntegrateConfig
from muki_ray.corpus import Corpus, normalise
from muki_ray.errors import ConfigError
from muki_ray.evaluation import check_compare_names, compare_setting
from muki_ray.labels import LabelSpace, join, near_collisions
from muki_ray.progress import Progress, say
from muki_ray.store import RunFolder
from muki_ray.student.model import StudentSpec, inspect_student
from muki_ray.student.previous import settle_init
from muki_ray.teachers.loading import TeacherSpec, inspect, inspect_classifier


def settled(config: IntegrateConfig) -> IntegrateConfig:
    """The configuration with paths that mean the same in every process.

    Raises:
        ConfigError: a relative output inside a Ray job, whose working directory is a temporary copy; or a name
            to compare with that is taken.
    """
    relative = not locations.scheme(config.output) and not Path(config.output).expanduser().is_absolute()
    if relative and os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        raise ConfigError(
            f"output {config.output!r} is relative, but a Ray job runs in a temporary copy of its folder, where results would be lost; "
            "give an absolute path or a URI (output=/shared/run or output=s3://bucket/run)"
        )
    if config.corpus.test is not None:
        check_compare_names(config.corpus.test.compare)
        if len(config.corpus.test.text) != len(config.corpus.text):
            raise ConfigError(
                f"corpus.test.text has {len(config.corpus.test.text)} columns but corpus.text has {len(config.corpus.text)}; "
                "both must be one text or both a pair"
            )
    return config.model_copy(update={"output": locations.absolute(config.output)})


def inspect_all(config: IntegrateConfig) -> tuple[list[TeacherSpec], LabelSpace, StudentSpec]:
    """Teachers, label space and student, and what to compare with, checked without weights in memory."""
    specs = [inspect(teacher) for teacher in config.teachers]
    space = join([spec.labels for spec in specs])
    for one, other in near_collisions(space):
        say(
            f"note: labels {one!r} and {other!r} look alike; if they are one, rename one with a teacher's `labels` map"
        )
    for name, location in (config.corpus.test.compare if config.corpus.test else {}).items():
        what = compare_setting(name)
        shared_labels(inspect_classifier(location, what), space.names, what)
    student = inspect_student(config.student, max(spec.max_length for spec in specs))
    return specs, space, settle_init(config.student.init, RunFolder(config.output), student)


def read_corpora(config: IntegrateConfig, folder: RunFolder, space: LabelSpace) -> list[Corpus]:
    """The corpus, and the test set if there is one, as shards in the run folder."""
    with Progress("reading corpus", config.corpus.limit) as progress:
        corpus = normalise(
            config.corpus,
            folder,
            shard_rows=config.corpus.shard_rows,
            limit=config.corpus.limit,
            progress=progress.update,
        )
        progress.update(corpus.rows_in)
    _say_set_aside("corpus", corpus)
    corpora = [corpus]
    if config.corpus.test is not None:
        test = normalise(
            config.corpus.test, folder, shard_rows=config.corpus.shard_rows, label=config.corpus.test.label
        )
        _say_set_aside("test set", test)
        unknown = check_test_labels(test, space)
        if unknown:
            say(f"test set: {unknown}")
        corpora.append(test)
    return corpora


def _say_set_aside(name: str, corpus: Corpus) -> None:
    """At once, also of a corpus that an earlier run has read: nobody should wait for the end to hear of it."""
    if corpus.quarantined:
        say(f"{name}: {corpus.set_aside}")
