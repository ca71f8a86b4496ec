"""The product: the best checkpoint as a plain Hugging Face folder, with card and resolved configuration.

Knows files and the card's template; knows no Ray, no Torch.
"""

from __future__ import annotations

from typing import Any

from pyarrow import fs

from muki_ray import filesystem as locations
from muki_ray.store import Folder
from muki_ray.student.loop import METRICS_FILE, STATE_FILE

# written last: names the training that the folder came from, so that a second run need not train again
MARKER = "muki_ray.json"
# what a model folder consists of; a file of these kinds that an earlier student left would be loaded with this one
_MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja")


def exported(student: Folder) -> str | None:
    """Name of the training whose student lies there whole, if any."""
    if not student.has(MARKER):
        return None
    content: Any = student.read_json(MARKER)
    name = content.get("training") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def export(checkpoint: str, student: Folder) -> None:
    """Copy a checkpoint's model files; training state stays behind. `finish` declares the folder whole."""
    if student.has(MARKER):
        student.remove([MARKER])
    from_fs, from_path = locations.open_location(checkpoint)
    to_fs, to_path = locations.open_location(student.location)
    to_fs.create_dir(to_path, recursive=True)
    stale = student.names()
    for info in from_fs.get_file_info(fs.FileSelector(from_path)):
        left_behind = info.base_name in (STATE_FILE, METRICS_FILE, MARKER) or info.base_name.startswith(".")
        if info.type == fs.FileType.File and not left_behind:
            locations.copy_file(from_fs, info.path, to_fs, f"{to_path}/{info.base_name}")
            stale.discard(info.base_name)
    student.remove(name for name in stale if name.endswith(_MODEL_FILES))


def finish(student: Folder, training: str, card: str, config: str, facts: dict[str, Any]) -> None:
    """Write the card, the resolved configuration and, last, the marker."""
    student.write_bytes("README.md", card.encode())
    student.write_bytes("muki_ray.yaml", config.encode())
    student.write_json(MARKER, {"training": training, **facts})
