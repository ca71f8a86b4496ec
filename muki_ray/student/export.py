"""The product: the best checkpoint as a plain Hugging Face folder, with card and resolved configuration.

Knows files and the card's template; knows no Ray, no Torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from muki_ray import filesystem as locations
from muki_ray.store import Folder
from muki_ray.student.loop import METRICS_FILE, STATE_FILE

# its last version is written last: names the training that the folder came from, so that a second run need not train again
MARKER = "muki_ray.json"
# what a model folder consists of; a file of these kinds that an earlier student left would be loaded with this one
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class Origin:
    """Where a student folder comes from.

    Attributes:
        training: name of the training that it is from; None while the folder is not whole.
        previous: digest of the student which that training started from; None where that was the base model.
    """

    training: str | None
    previous: str | None


def origin(student: Folder) -> Origin:
    """What the marker says; nothing where there is none."""
    content: Any = student.read_json(MARKER) if student.has(MARKER) else None
    found = content if isinstance(content, dict) else {}
    named = [found.get(name) for name in ("training", "previous")]
    return Origin(*(one if isinstance(one, str) else None for one in named))


def exported(student: Folder) -> str | None:
    """Name of the training whose student lies there whole, if any."""
    return origin(student).training


def export(checkpoint: str, student: Folder, previous: str | None = None) -> None:
    """Copy a checkpoint's model files; training state stays behind. `finish` declares the folder whole.

    Args:
        previous: digest of the student that the training started from; known even if this is cut short.
    """
    if previous is not None:
        student.write_json(MARKER, {"previous": previous})
    elif student.has(MARKER):
        student.remove([MARKER])
    from_fs, from_path = locations.open_location(checkpoint)
    stale = student.names() - {MARKER}
    wanted = [
        info.base_name
        for info in from_fs.get_file_info(fs.FileSelector(from_path))
        if info.type == fs.FileType.File
        and info.base_name not in (STATE_FILE, METRICS_FILE, MARKER)
        and not info.base_name.startswith(".")
    ]
    copy_files(checkpoint, wanted, student)
    student.remove(name for name in stale.difference(wanted) if name.endswith(_MODEL_FILES))


def copy_files(source: str, names: Iterable[str], target: Folder) -> None:
    """Copy files of a folder, across filesystems if need be; a file that is cut short stays as it is."""
    from_fs, from_path = locations.open_location(source)
    to_fs, to_path = locations.open_location(target.location)
    to_fs.create_dir(to_path, recursive=True)
    for name in names:
        locations.copy_file(from_fs, f"{from_path}/{name}", to_fs, f"{to_path}/{name}")


def finish(student: Folder, training: str, card: str, config: str, facts: dict[str, Any]) -> None:
    """Write the card, the resolved configuration and, last, the marker, which keeps what `export` said."""
    student.write_bytes("README.md", card.encode())
    student.write_bytes("muki_ray.yaml", config.encode())
    previous = origin(student).previous
    known = {} if previous is None else {"previous": previous}
    student.write_json(MARKER, {"training": training, **known, **facts})
