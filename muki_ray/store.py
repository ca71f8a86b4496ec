"""The run folder: named by fingerprints, written atomically, complete when its manifest is there.

Knows files and `pyarrow`; knows nothing of Ray, models or the paper. Contracts:

1. A file that exists is whole: written under a temporary name in the same folder, then renamed (object
   stores: one put).
2. A folder's name is a fingerprint of everything that changes its content. Its `manifest.json` is written
   last and lists every part's row count; a folder that disagrees with its manifest is refused.
3. Public Parquet has plain columns (integers, strings, `list<float>`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from muki_ray import filesystem as locations
from muki_ray.errors import StoreError, UserError
from muki_ray.retrying import patiently, refused

MANIFEST = "manifest.json"
_PART = re.compile(r"part-\d+\.parquet")


def fingerprint(content: Any, length: int = 16) -> str:
    """Hex digest of a JSON-able value; equal values give equal digests, whatever their key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def part_name(shard: int) -> str:
    """File name of a shard: `part-00007.parquet`."""
    return f"part-{shard:05d}.parquet"


@dataclass(frozen=True)
class Folder:
    """One folder of the run, local or in an object store. Cheap to send to another process.

    What its methods do with storage is tried again where it fails in a way that may pass.
    """

    location: str

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return locations.open_location(self.location)

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        object.__setattr__(self, "location", state["location"])

    def __repr__(self) -> str:
        # Ray notes what its workers are given
        return f"Folder({self.shown!r})"

    @property
    def shown(self) -> str:
        """Path or URI without credentials."""
        return locations.redact(self.location)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.shown.rstrip("/").rsplit("/", 1)[-1]

    def sub(self, *parts: str) -> Folder:
        """A folder below this one."""
        return Folder(locations.join(self.location, *parts))

    def path(self, name: str) -> str:
        """Path or URI of a file in this folder."""
        return locations.join(self.location, name)

    def _shown(self, name: str) -> str:
        return self.sub(name).shown

    # -- reading -------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether a file of that name is there (and so, whole)."""
        filesystem, root = self._opened
        return bool(filesystem.get_file_info(f"{root}/{name}").type == fs.FileType.File)

    def names(self) -> set[str]:
        """Names of the whole files directly in this folder; empty if there is no such folder."""
        filesystem, root = self._opened
        infos = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return {i.base_name for i in infos if i.type == fs.FileType.File and not i.base_name.startswith(".")}

    def _open(self, name: str) -> pa.NativeFile:
        """A file to be read anywhere: of such a one an object store is asked once for all that is wanted.

        Raises:
            StoreError: it is not there.
        """
        filesystem, root = self._opened
        try:
            return filesystem.open_input_file(f"{root}/{name}")
        except FileNotFoundError as error:
            raise StoreError(f"{self._shown(name)} is missing; delete {self.shown} and run again") from error

    def read_bytes(self, name: str) -> bytes:
        """Content of a file."""
        with self._open(name) as stream:
            return bytes(stream.read())

    def read_json(self, name: str) -> Any:
        """Content of a JSON file."""
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise StoreError(f"{self._shown(name)} is not JSON ({error}); delete it and run again") from error

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Content of a Parquet file; with `columns`, only those are fetched."""
        try:
            if columns is None:
                return pq.read_table(io.BytesIO(self.read_bytes(name)))
            with self._open(name) as stream:
                return pq.read_table(stream, columns=columns)
        except UserError:
            raise
        except (pa.ArrowException, OSError) as error:  # a damaged page is an OSError
            raise StoreError(
                f"{self._shown(name)} is not readable Parquet ({error}); delete it and run again"
            ) from error

    # -- writing -------------------------------------------------------------------------------------

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that it is whole or absent, never half there.

        Raises:
            StorageError: it cannot be written there.
        """
        filesystem, root = self._opened
        try:
            if locations.is_local(filesystem):
                patiently("write", f"{root}/{name}", partial(_write_local, Path(root), name, data))
                return
            # no compression: pyarrow would guess it from the name, and reading does not
            stream = filesystem.open_output_stream(f"{root}/{name}", compression=None)
            stream.write(data)
            stream.close()  # not after a failed write: closing is what sends it
        except FileNotFoundError as error:  # for a reader an answer, here a place that nobody can make
            raise refused("write", self._shown(name), error) from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, atomically."""
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, atomically; equal tables give equal bytes."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", store_schema=False)
        self.write_bytes(name, sink.getvalue())

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are passed over."""
        filesystem, root = self._opened
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(f"{root}/{name}")

    # -- manifests -----------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, or None while the folder is incomplete.

        Raises:
            StoreError: the manifest is damaged, or lists other parts than the folder has.
        """
        if not self.has(MANIFEST):
            return None
        content: Any = self.read_json(MANIFEST)
        rows = content.get("rows_per_part") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(n, int) and n >= 0 for n in rows):
            raise StoreError(
                f"{self._shown(MANIFEST)} has no list rows_per_part; delete the folder and run again"
            )
        self._check_parts(len(rows), "disagrees with its manifest")
        return dict(content)

    def finish(self, content: dict[str, Any], rows_per_part: list[int]) -> None:
        """Write the manifest, and with it declare the folder complete.

        Raises:
            StoreError: the folder has fewer parts than that, or more.
        """
        self._check_parts(len(rows_per_part), "cannot be finished")
        self.write_json(MANIFEST, {**content, "rows_per_part": rows_per_part})

    def _check_parts(self, count: int, complaint: str) -> None:
        """Refuse a folder with other parts than 0..count-1; readers of `part-*` would get other rows."""
        expected = {part_name(shard) for shard in range(count)}
        parts = {name for name in self.names() if _PART.fullmatch(name)}
        for what, odd in (("missing", expected - parts), ("too many", parts - expected)):
            if odd:
                first = min(odd, key=lambda name: (len(name), name))
                raise StoreError(
                    f"{self.shown} {complaint}: of {count} parts {len(odd)} are {what} "
                    f"(first: {first}); delete the folder and run again"
                )


def _write_local(folder: Path, name: str, data: bytes) -> None:
    """Write a file beside its place and rename it."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class RunFolder:
    """`output:` of a run. Every path of the layout is decided here and nowhere else."""

    location: str = field(repr=False)

    @property
    def root(self) -> Folder:
        """The run's own folder: `config.yaml` lies here."""
        return Folder(self.location)

    def corpus(self, fp: str) -> Folder:
        """Normalised shards of one corpus."""
        return self.root.sub("corpus", fp)

    def evidence(self, fp: str) -> Folder:
        """What one teacher says about one corpus."""
        return self.root.sub("evidence", fp)

    def supervision(self, fp: str) -> Folder:
        """Targets and weights of one method over one set of evidence."""
        return self.root.sub("supervision", fp)

    @property
    def checkpoints(self) -> str:
        """Where Ray Train keeps its state."""
        return locations.join(self.location, "checkpoints")

    def previous(self, content: str) -> Folder:
        """A copy of a student that a later one started from, by its digest."""
        return Folder(locations.join(self.checkpoints, f"previous-{content}"))

    @property
    def student(self) -> Folder:
        """The product: a Hugging Face folder."""
        return self.root.sub("student")

    @property
    def report(self) -> Folder:
        """Metrics and pictures."""
        return self.root.sub("report")
