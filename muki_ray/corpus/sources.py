"""Finds the files behind a configured path, and reads each as a stream of raw rows.

Knows paths, folders, globs, names of formats and of compressions; does not know rows or shards.
Names that start with `_` or `.` are left out of folders and globs, as other tools that write and read
folders of data do.
"""

from __future__ import annotations

import io
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate
from pyarrow import fs

from muki_ray import filesystem as locations
from muki_ray.config import TextSource
from muki_ray.corpus import huggingface
from muki_ray.corpus.lines import read_csv, read_jsonl, read_text, read_tsv
from muki_ray.corpus.rows import RawRows, Wanted
from muki_ray.corpus.tables import read_parquet
from muki_ray.errors import CorpusError, UserError
from muki_ray.retrying import patiently

READERS: dict[str, Callable[[Any, Wanted, str], Iterator[RawRows]]] = {
    "parquet": read_parquet,
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_tsv,
    "text": read_text,
}
SUFFIXES = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_KNOWN = ", ".join([*SUFFIXES, *(f"with {suffix}" for suffix in COMPRESSIONS)])


@dataclass(frozen=True)
class Source:
    """One file, saved data set or hub data set.

    Attributes:
        name: absolute path, URI without credentials, or hub id: what messages and quarantine show.
        format: a key of READERS, `saved` or `hub`.
        state: what changes when the content does (JSON-able).
        path: path in `filesystem`; for data sets, what the `datasets` package opens.
        split, revision: of a data set.
    """

    name: str
    format: str
    state: list[Any]
    path: str
    filesystem: fs.FileSystem | None = None
    split: str = ""
    revision: str | None = None


def find(source: TextSource) -> list[Source]:
    """All files and data sets of a configured source, in reading order.

    Entries come in the order given, the files of one folder or glob sorted by path.

    Raises:
        CorpusError: a path, glob or folder gives nothing, a file's format is unknown, or one is named twice.
        ConfigError: a location cannot be opened at all.
    """
    found: dict[str, Source] = {}
    for location in source.path:
        try:
            items = _expand(location, source)
        except UserError:
            raise
        except OSError as error:
            shown = locations.redact(location)
            raise CorpusError(f"cannot look at {shown!r}: {error}; check path and access") from error
        for item in items:
            if item.name in found:
                entries = [locations.redact(entry) for entry in source.path]
                raise CorpusError(f"{item.name!r} is named twice by path: {entries}; name it once")
            found[item.name] = item
    return list(found.values())


def read(item: Source, wanted: Wanted) -> Iterator[RawRows]:
    """Raw rows of one source, in batches.

    Raises:
        CorpusError: the file is damaged, or lacks a wanted column, or has it in an unfit type.
    """
    try:
        if item.format == "saved":
            yield from huggingface.read_saved(item.path, item.split, wanted, item.name)
        elif item.format == "hub":
            yield from huggingface.read_hub(item.path, item.split, item.revision, wanted, item.name)
        else:
            yield from _read_file(item, wanted)
    except UserError:
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise CorpusError(
            f"cannot read {item.name} as {item.format}: {error}; mend or remove the file, or set format:"
        ) from error


def _read_file(item: Source, wanted: Wanted) -> Iterator[RawRows]:
    reader = READERS[item.format]
    compression = COMPRESSIONS.get(posixpath.splitext(item.path)[1].lower())
    assert item.filesystem is not None
    if item.format == "parquet" and compression is None:
        with item.filesystem.open_input_file(item.path) as file:
            yield from reader(file, wanted, item.name)
        return
    with item.filesystem.open_input_stream(item.path, compression=compression) as stream:
        if item.format != "parquet":
            yield from reader(io.BufferedReader(stream, 1 << 20), wanted, item.name)
            return
        with tempfile.TemporaryFile() as unpacked:  # Parquet is read from its end
            shutil.copyfileobj(stream, unpacked, 1 << 20)
            yield from reader(unpacked, wanted, item.name)


# -- finding -------------------------------------------------------------------------------------------


def format_of(name: str) -> str | None:
    """Format of a file by its name, seen through a compression suffix; None if unknown."""
    stem, suffix = posixpath.splitext(name.lower())
    if suffix in COMPRESSIONS:
        suffix = posixpath.splitext(stem)[1]
    return SUFFIXES.get(suffix)


def _expand(location: str, source: TextSource) -> list[Source]:
    """What one configured entry stands for."""
    remote = bool(locations.scheme(location))
    shown = locations.redact(location)
    there = not remote and Path(location).expanduser().exists()
    if source.format == "datasets" and not there and _HUB_ID.fullmatch(location):
        state = ["hub", location, source.revision, source.split]
        return [Source(location, "hub", state, location, split=source.split, revision=source.revision)]
    # '?' starts the query of a URI; a local file may have brackets in its name
    if not there and any(mark in location for mark in ("*[" if remote else "*?[")):
        return _glob(location, source)
    filesystem, path = _open(location)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        if source.format == "datasets":
            raise CorpusError(f"{shown!r} is a file; format: datasets reads a saved folder or a hub id")
        return [_file(filesystem, info, location, source)]
    if info.type == fs.FileType.Directory:
        return _folder(filesystem, path, location, source)
    raise CorpusError(
        f"nothing at {shown!r}; give a file, folder or glob, or set format: datasets for a hub id"
    )


def _open(location: str) -> tuple[fs.FileSystem, str]:
    filesystem, path = locations.open_location(location)
    return filesystem, posixpath.normpath(path) if locations.is_local(filesystem) else path.rstrip("/")


def _file(filesystem: fs.FileSystem, info: fs.FileInfo, location: str, source: TextSource) -> Source:
    """One file.

    Raises:
        CorpusError: its format is unknown.
    """
    name = _name(location, info.path)
    kind = format_of(info.path) if source.format == "auto" else source.format
    if kind is None:
        raise CorpusError(
            f"cannot tell the format of {name!r} by its suffix (known: {_KNOWN}); "
            f"set format: to one of {', '.join(READERS)} (jsonl: one JSON object per line)"
        )
    return Source(name, kind, [name, *_stamp(filesystem, info)], info.path, filesystem)


def _folder(filesystem: fs.FileSystem, path: str, location: str, source: TextSource) -> list[Source]:
    """A saved data set, or all files below with a known suffix (with `format:` set, one of that format)."""
    shown = locations.redact(location)
    files = _files(filesystem, path)
    top = {name for name in files if "/" not in name}
    if source.format in ("auto", "datasets") and huggingface.is_saved(top):
        name = _name(location, path)
        state = ["saved", source.split, *([name, *_stamp(filesystem, info)] for name, info in files.items())]
        return [Source(name, "saved", state, name, split=source.split)]
    if source.format == "datasets":
        raise CorpusError(
            f"folder {shown!r} holds no saved data set (dataset_dict.json, state.json); change format:"
        )
    fit = [
        _file(filesystem, info, location, source)
        for name, info in files.items()
        if _visible(name) and format_of(name) is not None and source.format in ("auto", format_of(name))
    ]
    if not fit:
        kinds = _KNOWN if source.format == "auto" else source.format
        raise CorpusError(
            f"folder {shown!r} holds no file of a known suffix ({kinds}); "
            f"set format: and a glob such as '{shown}/*.log'"
        )
    return fit


def _glob(location: str, source: TextSource) -> list[Source]:
    """All files that match a pattern."""
    shown = locations.redact(location)
    if source.format == "datasets":
        raise CorpusError(f"{shown!r} is a glob; format: datasets reads a saved folder or a hub id")
    address, _, query = location.partition("?") if locations.scheme(location) else (location, "", "")
    parts = address.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    base = "/".join(parts[:fixed])
    if locations.scheme(location) and fixed < 3:
        raise CorpusError(f"glob {shown!r} leaves the bucket open; name the bucket")
    base = base or ("/" if address.startswith("/") else ".")
    try:
        matches = re.compile(glob_translate("/".join(parts[fixed:]))).match
    except ValueError as error:
        raise CorpusError(f"glob {shown!r} is malformed: {error}") from error
    filesystem, path = _open(base + (f"?{query}" if query else ""))
    deep = len(parts) - fixed > 1 or "**" in parts[fixed]
    found = [
        _file(filesystem, info, location, source)
        for name, info in _files(filesystem, path, deep).items()
        if _visible(name) and matches(name)
    ]
    if not found:
        raise CorpusError(f"glob {shown!r} matches no file (names that start with '_' or '.' are left out)")
    return found


def _files(filesystem: fs.FileSystem, path: str, deep: bool = True) -> dict[str, fs.FileInfo]:
    """Files below a folder, by path relative to it, sorted."""
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=deep, allow_not_found=True))
    start = len(path.strip("/"))
    files = {i.path.strip("/")[start:].lstrip("/"): i for i in infos if i.type == fs.FileType.File}
    return dict(sorted(files.items()))


def _visible(name: str) -> bool:
    return not any(part.startswith(("_", ".")) for part in name.split("/"))


def _stamp(filesystem: fs.FileSystem, info: fs.FileInfo) -> list[Any]:
    """Size and time of a file; where a file system keeps no time, its own mark of the content."""
    client = locations.plain(filesystem)
    if info.mtime_ns is None and isinstance(client, fs.PyFileSystem):
        return [info.size, patiently("look at", info.path, partial(client.handler.fs.ukey, info.path))]
    return [info.size, info.mtime_ns]


def _name(location: str, path: str) -> str:
    """Path or URI of a file found through `location`, without credentials."""
    kind = locations.scheme(location)
    return path if kind in ("", "file") or locations.scheme(path) else f"{kind}://{path}"
