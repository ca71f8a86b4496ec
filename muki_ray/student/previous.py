"""Which student a training starts from when teachers were added, and where that one is kept meanwhile.

The finished student of the output folder is replaced by the one that grows out of it. So a copy stays beside the
checkpoints, and the marker of the new one names it: a run that was killed, at whatever moment, starts from the same
student again, and a second run knows its own product. Knows folders; knows no Torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from muki_ray import filesystem as locations
from muki_ray import hub
from muki_ray.errors import StudentError
from muki_ray.store import Folder, RunFolder
from muki_ray.student.export import MARKER, copy_files, exported, origin
from muki_ray.student.model import Previous, StudentSpec, inspect_previous


def settle_init(init: str, run: RunFolder, spec: StudentSpec) -> StudentSpec:
    """The student with what `student.init` names, checked before any device is taken.

    The student of the output folder is only checked: whether it is a previous one or the product of this very
    configuration is `start`'s to find out, when the training has its name.

    Raises:
        StudentError: what is named is not there, not finished, or not of the base model's architecture.
    """
    if init == "base":
        return spec
    if _is_own(init, run):
        if exported(run.student) is not None:
            inspect_previous(run.student.location, spec)
        return spec
    folder = hub.fetch(init, None, False, StudentError, "student.init")
    if exported(Folder(str(folder))) is None:
        raise StudentError(
            f"student.init: there is no finished student in {locations.redact(init)!r} (no {MARKER} that names its training); "
            "give the student folder of a finished run, 'previous' for that of this output, or 'base'"
        )
    here = Path(init).expanduser().is_dir()
    return replace(spec, previous=inspect_previous(str(folder) if here else init, spec))


def start(init: str, run: RunFolder, spec: StudentSpec, name: Callable[[StudentSpec], str]) -> StudentSpec:
    """The student with what its training starts from.

    Args:
        spec: as `settle_init` gave it.
        name: the training's name, were it to train that student.

    Raises:
        StudentError: see `settle_init`.
    """
    if init == "base" or spec.previous is not None:
        return spec
    found = origin(run.student)
    before = (
        None if found.previous is None else Previous(run.previous(found.previous).location, found.previous)
    )
    begun = replace(spec, previous=before)
    if found.training is None or found.training == name(begun):
        return begun  # never finished, or this very product: what it started from, it starts from again
    return replace(spec, previous=_kept(run, inspect_previous(run.student.location, spec)))


def _is_own(init: str, run: RunFolder) -> bool:
    """Whether it is the output folder's own student that is named, by its word or by its path."""
    if init == "previous":
        return True
    filesystem, path = locations.open_location(init)
    own, place = locations.open_location(run.student.location)
    return bool(filesystem == own) and path.rstrip("/") == place.rstrip("/")


def _kept(run: RunFolder, previous: Previous) -> Previous:
    """The same student in a folder that stays; the marker, copied last, says that it is whole."""
    kept = run.previous(previous.content)
    if exported(kept) is None:
        copy_files(run.student.location, sorted(run.student.names() - {MARKER}), kept)
        kept.write_bytes(MARKER, run.student.read_bytes(MARKER))
    return Previous(kept.location, previous.content)
