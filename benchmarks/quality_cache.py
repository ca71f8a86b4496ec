"""What took long is computed once: arrays in npz files, named by a fingerprint of what changes them, written whole.

Knows files and numpy only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muki_ray.store import fingerprint

Arrays = dict[str, NDArray[Any]]


def arrays(folder: Path, content: Any, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, kept in `folder` under the fingerprint of `content`."""
    path = folder / f"{fingerprint(content)}.npz"
    if path.is_file():
        with np.load(path) as found:
            return {name: found[name] for name in found.files}
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **made)
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
    return made


def digest(parts: Iterable[str | bytes | NDArray[Any]]) -> str:
    """One digest of texts and arrays, for use in a fingerprint."""
    found = hashlib.sha256()
    for part in parts:
        data = (
            part.encode()
            if isinstance(part, str)
            else bytes(part)
            if isinstance(part, bytes)
            else part.tobytes()
        )
        found.update(f"{len(data)}:".encode())
        found.update(data)
    return found.hexdigest()


@cache
def code(*folders: Path) -> str:
    """Digest of the Python files in these folders: results made by other code are made anew."""
    files = sorted(path for folder in folders for path in folder.glob("*.py"))
    return digest(part for path in files for part in (path.name, path.read_bytes()))
