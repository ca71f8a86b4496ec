"""Raw rows: what every reader gives, before anything is checked.

Knows roles and columns; does not know formats, files or shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from muki_ray.errors import CorpusError

BATCH_ROWS = 2048

Wanted = dict[str, str]
"""Role (`text`, `text_pair`, `label`) to column name."""


@dataclass(frozen=True)
class RawRows:
    """Consecutive rows of one source.

    Attributes:
        columns: role to binary array, all of the same length; nothing is checked yet.
        faults: index in this batch to reason, for rows that could not be taken apart.
    """

    columns: dict[str, pa.Array]
    faults: dict[int, str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def head(self, rows: int) -> RawRows:
        """The first rows only."""
        return RawRows(
            {role: array[:rows] for role, array in self.columns.items()},
            {index: reason for index, reason in self.faults.items() if index < rows},
        )


def roles(text: Sequence[str], label: str | None) -> Wanted:
    """What to read: text columns, and the label column where one is asked for."""
    wanted = dict(zip(("text", "text_pair"), text, strict=False))
    return wanted if label is None else {**wanted, "label": label}


def require_columns(name: str, wanted: Wanted, columns: Sequence[str]) -> None:
    """Raise CorpusError where a wanted column is missing, or there more than once."""
    for role, column in wanted.items():
        if columns.count(column) != 1:
            problem = f"more than one column {column!r}" if column in columns else f"no column {column!r}"
            shown = ", ".join(repr(c) for c in columns[:50]) + (", ..." if len(columns) > 50 else "")
            setting = "label" if role == "label" else "text"
            raise CorpusError(
                f"{name} has {problem}; set {setting}: to one of its columns: {shown or 'none'}"
            )
