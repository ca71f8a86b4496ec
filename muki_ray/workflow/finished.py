"""A student that is finished, and whether a configuration is the one it was made with.

Fingerprints decide: what they do not hold does not change the student. Settings are compared only to say what differs.
Knows the run folder and the stages' names; starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from muki_ray.config import IntegrateConfig, to_yaml
from muki_ray.errors import ConfigError
from muki_ray.pipeline import ScoringTask
from muki_ray.runtime import Cluster
from muki_ray.store import Folder
from muki_ray.workflow.learn import is_trained_so, reader
from muki_ray.workflow.run import Run
from muki_ray.workflow.score import integration

CONFIG_FILE = "muki_ray.yaml"
# sections that have no part in the student, and so explain nothing
_APART = {"output", "tracking", "corpus.test"}
_MOST_DIFFERENCES = 3


def check_made_with(run: Run, tasks: Sequence[ScoringTask], cluster: Cluster) -> None:
    """That the finished student is what this configuration gives.

    With another one, teachers would score the whole corpus again, and the student's card would tell of settings
    that it was not made with.

    Raises:
        ConfigError: it is not.
    """
    reason = _other(run, tasks, cluster)
    if reason:
        student = run.folder.student
        found = differences(run.config, student)
        listed = "; ".join(found[:_MOST_DIFFERENCES]) + ("; ..." if len(found) > _MOST_DIFFERENCES else "")
        raise ConfigError(
            f"the student at {student.shown!r} was not made with this configuration: {reason}"
            f"{f' ({listed})' if found else ''}; evaluate with the settings in its {CONFIG_FILE}, or run integrate for a new one"
        )


def _other(run: Run, tasks: Sequence[ScoringTask], cluster: Cluster) -> str:
    """What is not there that would be; empty if all is."""
    for task in tasks:
        shards = sum(corpus == 0 for corpus, _ in task.missing())
        if shards:
            return f"teacher {task.name!r} would first have to score {shards:,} shards of the corpus"
    folder = integration(run, tasks).folder
    facts = folder.manifest()
    if facts is None:
        return "its teachers would be integrated otherwise"
    if not is_trained_so(run, reader(run, folder, facts), cluster):
        return "it would be trained otherwise"
    return ""


def differences(config: IntegrateConfig, student: Folder) -> list[str]:
    """Settings that are others than those noted beside the student, a few words each."""
    then = yaml.safe_load(student.read_bytes(CONFIG_FILE)) if student.has(CONFIG_FILE) else {}
    made, asked = dict(_settings(then)), dict(_settings(yaml.safe_load(to_yaml(config))))
    # a setting that the other does not know is of another version of this package
    return [
        f"{key} is {asked[key]!r}, was {made[key]!r}"
        for key in asked
        if key in made and asked[key] != made[key]
    ]


def _settings(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values by dotted key; lists of plain values, and maps of labels, are one value."""
    if key in _APART:
        return
    if isinstance(content, Mapping) and key.rpartition(".")[2] != "labels":
        for name, value in content.items():
            yield from _settings(value, f"{key}.{name}" if key else str(name))
    elif key == "teachers" and isinstance(content, list):
        yield key, [one.get("name") for one in content]
        for number, value in enumerate(content):
            yield from _settings(value, f"{key}.{number}")
    else:
        yield key, content
