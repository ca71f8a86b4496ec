"""Where things lie: a path or URI becomes a pyarrow filesystem and a path in it.

Knows `pyarrow.fs` and `fsspec`; knows nothing of corpora, evidence or models.
Local paths, `file://`, `s3://` and `gs://` go through pyarrow's own filesystems, every other scheme
(`hf://`, `abfs://`, ...) through the fsspec package that serves it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from muki_ray.errors import ConfigError

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_URI = re.compile(r"[a-z][a-z0-9+.-]+://[^\s'\"]*", re.IGNORECASE)
_SECRET_START = re.compile(r"[^:]*:(?!\d{1,5}$).*")  # `key:sec`, but not `host:9000`


def scheme(location: str) -> str:
    """Scheme of a URI in lower case, or `""` for a local path."""
    match = _SCHEME.match(location)
    return match.group(1).lower() if match else ""


def absolute(location: str) -> str:
    """The same place, independent of the working directory. URIs come back unchanged."""
    return location if scheme(location) else str(Path(location).expanduser().absolute())


def join(location: str, *parts: str) -> str:
    """Append path parts to a path or URI; the options of a URI (`?region=...`) stay at its end."""
    options = ""
    if scheme(location) not in ("", "file"):
        location, mark, rest = location.partition("?")
        options = mark + rest
    return "/".join([location.rstrip("/"), *(part.strip("/") for part in parts)]) + options


def redact(location: str) -> str:
    """The location without credentials (`s3://key:secret@bucket`, query strings): safe to print and store."""
    kind = scheme(location)
    if kind in ("", "file"):
        return location
    head, _, rest = location.partition("://")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif "@" in path and _SECRET_START.fullmatch(authority):
        # `s3://key:sec/ret@bucket` is malformed, but people write it; the `@` of `hf://.../name@v1` stays
        rest = path.rpartition("@")[2]
    return f"{head}://{rest.split('?', 1)[0]}"


def _scrub(text: str) -> str:
    """An error's text with every URI in it redacted."""
    return _URI.sub(lambda match: redact(match.group()), text)


def redact_all(value: Any) -> Any:
    """A copy of nested mappings and lists in which every string is safe to store."""
    if isinstance(value, Mapping):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path of a location.

    Raises:
        ConfigError: the scheme is unknown, its package is missing, or the URI is malformed.
    """
    kind = scheme(location)
    if kind in ("", "file"):
        return fs.LocalFileSystem(), absolute(_file_path(location) if kind else location)
    try:
        if kind in ("s3", "gs", "gcs") and not urlsplit(location).netloc:
            raise ValueError("there is no bucket")
        if kind == "s3":
            return fs.FileSystem.from_uri(_s3_uri(location))
        if kind in ("gs", "gcs"):
            return fs.FileSystem.from_uri("gs" + location[len(kind) :])
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(location)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
    except (pa.ArrowException, ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"cannot open {redact(location)!r}: {_scrub(str(error))}; "
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


def _s3_uri(location: str) -> str:
    """The location with the endpoint of the standard `AWS_ENDPOINT_URL` variables spelled out in it.

    With an endpoint of one's own there is no region to look up, so the usual default stands in for it.
    """
    parts = urlsplit(location)
    options = dict(parse_qsl(parts.query))
    variable = "AWS_ENDPOINT_URL_S3" if os.environ.get("AWS_ENDPOINT_URL_S3") else "AWS_ENDPOINT_URL"
    endpoint = os.environ.get(variable)
    if endpoint and "endpoint_override" not in options:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ValueError(f"{variable} is {redact(endpoint)!r}, not of the form http://host:port")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options = {"region": region, "scheme": url.scheme, "endpoint_override": url.netloc, **options}
    return urlunsplit(parts._replace(query=urlencode(options)))


def is_local(filesystem: fs.FileSystem) -> bool:
    """Whether files of this filesystem can be renamed in place and opened by plain `open`."""
    return isinstance(filesystem, fs.LocalFileSystem)


def exists(location: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_location(location)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def copy_tree(source: str, destination: str) -> None:
    """Copy a folder's files, across filesystems if need be."""
    from_fs, from_path = open_location(source)
    to_fs, to_path = open_location(destination)
    to_fs.create_dir(to_path, recursive=True)
    fs.copy_files(from_path, to_path, source_filesystem=from_fs, destination_filesystem=to_fs)
