"""What MLflow takes: flat names in its alphabet, finite numbers, text without credentials.

Pure; knows MLflow's rules but not MLflow.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from muki_ray.uris import clean

MOST_NAME, MOST_VALUE = 250, 6000


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings and lists as one mapping with dotted names that MLflow accepts, each one different."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            items: list[tuple[Any, Any]] = list(value.items())
        elif isinstance(value, (list, tuple)):
            items = list(enumerate(value))
        else:
            name, turn = mlflow_name(prefix), 2
            while name in flat:  # two names that differ only in what MLflow refuses
                name, turn = mlflow_name(prefix, f".{turn}"), turn + 1
            flat[name] = value
            return
        for key, inner in items:
            walk(f"{prefix}.{key}" if prefix else str(key), inner)

    walk("", values)
    return flat


def mlflow_name(text: str, suffix: str = "") -> str:
    """A name that MLflow accepts: its alphabet, a clean relative path, at most 250 characters."""
    name = re.sub(r"[^/\w.\- ]", "_", text).strip() or "_"
    if posixpath.normpath(name) != name or name.startswith(("..", "/")) or name == ".":
        name = name.replace("/", "_").replace("..", "_.")
        name = "_" if name == "." else name
    return name[: MOST_NAME - len(suffix)] + suffix


def finite(value: Any) -> float | None:
    """The value as a finite float, or None. Numbers of NumPy and zero-dimensional arrays count."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def short(error: Exception) -> str:
    """The error on one line, without credentials."""
    text = " ".join(clean(str(error)).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
