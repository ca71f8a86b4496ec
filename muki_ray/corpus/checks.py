"""Tells good rows from bad ones.

Knows what a usable text is; does not know files or shards. A text is kept as it is or not at all: it must
be there, be UTF-8, be more than white space, and have no NUL character (tools written in C cut texts
there, so two readers of one shard would see two texts).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from muki_ray.corpus.rows import RawRows


def check(rows: RawRows) -> tuple[dict[str, pa.Array], dict[int, str]]:
    """Judge a batch of raw rows.

    Returns:
        role to string array over all rows of the batch, and index to reason for the bad ones. A row with
        several faults is given the first one.
    """
    reasons = dict(rows.faults)
    columns = {}
    for role, raw in rows.columns.items():
        columns[role], found = _check_column(role, raw)
        reasons = {**found, **reasons}
    return columns, reasons


def _check_column(role: str, raw: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    reasons: dict[int, str] = {}
    try:
        texts = raw.cast(pa.string())
    except pa.ArrowInvalid:
        texts, reasons = _decode_each(role, raw)
    empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)
    for mask, problem in (
        (pc.is_null(texts), f"null {role}"),
        (empty, f"empty {role}"),
        (pc.match_substring(texts, "\0"), f"{role} has a NUL character"),
    ):
        for index in _where(mask):
            reasons.setdefault(index, problem)
    return texts, reasons


def _decode_each(role: str, raw: pa.Array) -> tuple[pa.Array, dict[int, str]]:
    """The slow way, for a batch that has undecodable bytes somewhere."""
    texts: list[str | None] = []
    reasons = {}
    for index, value in enumerate(raw.to_pylist()):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            texts.append(None)
            reasons[index] = f"{role} is not UTF-8"
    return pa.array(texts, pa.string()), reasons


def _where(mask: pa.Array) -> Iterator[int]:
    return map(int, np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False)))
