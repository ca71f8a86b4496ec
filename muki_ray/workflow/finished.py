"""A student that is finished, and the configuration it was made with.

Knows the run folder and configurations; knows no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from muki_ray.config import IntegrateConfig, to_yaml
from muki_ray.errors import ConfigError
from muki_ray.store import Folder
from muki_ray.student.export import exported

CONFIG_FILE = "muki_ray.yaml"
# what may differ: where things run, what is measured, where it is noted
_ELSEWHERE = {
    "output", "tracking", "corpus.test", "training.num_workers", "training.num_cpus", "training.num_gpus",
    "training.accelerator_type", "training.max_failures", "training.checkpoint_steps",
}  # fmt: skip
_ELSEWHERE_OF_TEACHERS = {"resources", "device", "dtype"}
# of these only the last part of the path is compared: a folder that was moved is the same
_PLACES = {"model", "path", "adapter", "init"}


def check_finished(config: IntegrateConfig, student: Folder) -> None:
    """That there is a student, and that this configuration is the one it was made with.

    With another one, teachers would score the whole corpus again, and the student's card would tell of settings
    that it was not made with.

    Raises:
        ConfigError: there is none, or it was made otherwise.
    """
    if exported(student) is None:
        raise ConfigError(
            f"no finished student at {student.shown!r}; run integrate with this configuration first"
        )
    then = yaml.safe_load(student.read_bytes(CONFIG_FILE)) if student.has(CONFIG_FILE) else {}
    made, asked = dict(_settings(then)), dict(_settings(yaml.safe_load(to_yaml(config))))
    if len(then.get("teachers", config.teachers)) != len(config.teachers):
        differing = ["teachers"]
        made, asked = {"teachers": len(then["teachers"])}, {"teachers": len(config.teachers)}
    else:  # a setting that the other does not know is of another version of this package
        differing = [key for key in asked if key in made and asked[key] != made[key]]
    if differing:
        key = differing[0]
        raise ConfigError(
            f"{key} is {asked[key]!r}, but the student at {student.shown!r} was made with {made[key]!r}; evaluate with the "
            f"configuration in its {CONFIG_FILE}, or run integrate for a new one"
        )


def _settings(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values that shape the student, by dotted key; lists of paths and of columns, and maps of labels, are one value."""
    last = key.rpartition(".")[2]
    if isinstance(content, Mapping) and last != "labels":
        for name, value in content.items():
            dotted = f"{key}.{name}" if key else str(name)
            of_teacher = key.startswith("teachers.") and name in _ELSEWHERE_OF_TEACHERS
            if dotted not in _ELSEWHERE and not of_teacher:
                yield from _settings(value, dotted)
    elif isinstance(content, list) and last == "teachers":
        for number, value in enumerate(content):
            yield from _settings(value, f"{key}.{number}")
    else:
        yield key, _last_part(content) if last in _PLACES else content


def _last_part(place: Any) -> Any:
    if isinstance(place, list):
        return [_last_part(one) for one in place]
    return place.rstrip("/").rpartition("/")[2] if isinstance(place, str) else place
