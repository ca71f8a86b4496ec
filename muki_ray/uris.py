"""Paths and URIs as text: their parts, how they are joined, and what of them may be shown.

Pure; knows no filesystem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
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


def clean(text: str) -> str:
    """The text with every URI in it redacted."""

    def redacted(match: re.Match[str]) -> str:
        uri = match.group()
        while (shorter := redact(uri)) != uri:  # a password may hold an @ of its own
            uri = shorter
        return uri

    return _URI.sub(redacted, text)


def redact_all(value: Any) -> Any:
    """A copy of nested mappings and lists in which every string is safe to store."""
    if isinstance(value, Mapping):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value
