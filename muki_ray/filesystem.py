"""Where things lie: a path or URI becomes a pyarrow filesystem and a path in it.

Knows `pyarrow.fs` and `fsspec`; knows nothing of corpora, evidence or models.
Local paths, `file://`, `s3://` and `gs://` go through pyarrow's own filesystems, every other scheme
(`hf://`, `abfs://`, ...) through the fsspec package that serves it. Whatever it is, what it does is tried again where
it fails in a way that may pass (`steady`).
"""

from __future__ import annotations

import os
import posixpath
import uuid
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from muki_ray.errors import ConfigError, UserError
from muki_ray.retrying import patiently
from muki_ray.steady import Steady
from muki_ray.uris import absolute, clean, join, redact, redact_all, scheme

__all__ = [
    "absolute",
    "copy_file",
    "copy_folder",
    "copy_tree",
    "exists",
    "is_local",
    "join",
    "open_location",
    "plain",
    "redact",
    "redact_all",
    "scheme",
]

# what may stand behind the `?` of an s3 URI
_S3_TEXTS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_S3_FLAGS = ("allow_bucket_creation", "allow_bucket_deletion", "force_virtual_addressing")
_CHUNK = 16 << 20  # bytes that are copied at a time


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a location. The filesystem is picklable, and opened anew where it arrives.

    Raises:
        ConfigError: the scheme is unknown, its package is missing, or the URI is malformed.
        StorageError: an S3 bucket's region cannot be had.
    """
    kind = scheme(location)
    opened = _native(location)
    shown = "" if kind in ("", "file") else f"{kind}://"
    return fs.PyFileSystem(Steady(shown, partial(_native_filesystem, location), opened[0])), opened[1]


def plain(filesystem: fs.FileSystem) -> fs.FileSystem:
    """What a filesystem of `open_location` is made of: pyarrow's own, or one of fsspec, which fails at once."""
    handler = filesystem.handler if isinstance(filesystem, fs.PyFileSystem) else None
    return handler.inner if isinstance(handler, Steady) else filesystem


def _native_filesystem(location: str) -> fs.FileSystem:
    return _native(location)[0]


def _native(location: str) -> tuple[fs.FileSystem, str]:
    kind = scheme(location)
    if kind in ("", "file"):
        return fs.LocalFileSystem(), absolute(_file_path(location) if kind else location)
    try:
        if kind in ("s3", "gs", "gcs") and not urlsplit(location).netloc:
            raise ValueError("there is no bucket")
        if kind == "s3":
            return _s3(location)
        if kind in ("gs", "gcs"):
            return fs.FileSystem.from_uri("gs" + location[len(kind) :])
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(location)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
    except UserError:
        raise
    except (pa.ArrowException, ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"cannot open {redact(location)!r}: {clean(str(error))}; "
            "use a local path, s3://, gs://, hf:// or a scheme whose fsspec package is installed"
        ) from error


def _file_path(location: str) -> str:
    """Path in a `file://` URI."""
    host, slash, path = location.partition("://")[2].partition("/")
    if host not in ("", "localhost"):
        raise ConfigError(
            f"{location!r} names the host {host!r}; a file URI has three slashes, or give the path alone"
        )
    return unquote(slash + path)


def _s3(location: str) -> tuple[fs.S3FileSystem, str]:
    """Filesystem and path of `s3://[key:secret@]bucket/path[?region=...&scheme=...&endpoint_override=...]`.

    Without an endpoint in it the standard `AWS_ENDPOINT_URL` variables count, without a key the usual chain of
    credentials: environment, profile, instance role. Not left to pyarrow's own reading of the URI, which gives a
    client that would hold threads of the pool that Ray Train's uploads wait for (`background_writes`), and that makes
    three requests of a small file (`allow_delayed_open`).
    """
    parts = urlsplit(location)
    credentials, _, bucket = parts.netloc.rpartition("@")
    key, _, secret = credentials.partition(":")
    if ":" in bucket or parts.fragment:
        raise ValueError("a bucket has no colon; write / as %2F and # as %23 in a secret or a name")
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = sorted(set(given) - {*_S3_TEXTS, *_S3_FLAGS})
    if unknown:
        raise ValueError(
            f"an s3 URI has no option {unknown[0]!r}, only {', '.join([*_S3_TEXTS, *_S3_FLAGS])}"
        )
    options: dict[str, Any] = {name: given[name] for name in _S3_TEXTS if name in given}
    for name in set(given) & set(_S3_FLAGS):
        if given[name] not in ("true", "false"):
            raise ValueError(f"{name} is {given[name]!r}, not true or false")
        options[name] = given[name] == "true"
    options = {**_s3_endpoint(), **options} if "endpoint_override" not in given else options
    if "region" not in options:
        # with an endpoint of one's own there is no region to look up
        options["region"] = _usual_region() if "endpoint_override" in options else _region(bucket)
    filesystem = fs.S3FileSystem(
        access_key=unquote(key) or None,
        secret_key=unquote(secret) or None,
        background_writes=False,
        allow_delayed_open=True,
        **options,
    )
    return filesystem, (bucket + unquote(parts.path)).rstrip("/")


def _s3_endpoint() -> dict[str, str]:
    """Endpoint and scheme of the standard environment variables, where they name one."""
    variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = os.environ.get(variable)
    if not endpoint:
        return {}
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError(f"{variable} is {redact(endpoint)!r}, not of the form http://host:port")
    return {"scheme": url.scheme, "endpoint_override": url.netloc}


def _usual_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@cache
def _region(bucket: str) -> str:
    """Where a bucket of the public service lies; asked once a process."""
    return str(patiently("find the region of", f"s3://{bucket}", partial(fs.resolve_s3_region, bucket)))


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether files of this filesystem can be renamed in place and opened by plain `open`."""
    return isinstance(plain(filesystem), fs.LocalFileSystem)


def exists(location: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_location(location)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def copy_tree(source: str, destination: str) -> None:
    """Copy a folder's files, across filesystems if need be."""
    copy_folder(*open_location(source), *open_location(destination))


def copy_folder(from_fs: fs.FileSystem, from_path: str, to_fs: fs.FileSystem, to_path: str) -> None:
    """`copy_tree` between paths of filesystems."""
    made = set()
    for info in from_fs.get_file_info(fs.FileSelector(from_path, recursive=True)):
        if info.type == fs.FileType.File:
            below = info.path.strip("/")[len(from_path.strip("/")) :].lstrip("/")
            target = f"{to_path}/{below}"
            folder = posixpath.dirname(target)
            if folder not in made:
                to_fs.create_dir(folder, recursive=True)
                made.add(folder)
            copy_file(from_fs, info.path, to_fs, target)


def copy_file(from_fs: fs.FileSystem, from_path: str, to_fs: fs.FileSystem, to_path: str) -> None:
    """Copy a file into a folder that is there.

    Not by pyarrow's `copy_files`: it says nothing when a copy fails to close, which is when object stores take it.
    """
    if from_fs.equals(to_fs):
        to_fs.copy_file(from_path, to_path)
        return
    local = is_local(to_fs)
    target = f"{to_path}.{uuid.uuid4().hex}.tmp" if local else to_path
    try:
        with from_fs.open_input_stream(from_path, compression=None) as source:
            sink = to_fs.open_output_stream(target, compression=None)
            while len(chunk := source.read_buffer(_CHUNK)):
                sink.write(chunk)
            sink.close()
        if local:
            Path(target).replace(to_path)
    finally:
        if local:
            Path(target).unlink(missing_ok=True)
