"""Writes shards of good rows, and the list of bad ones.

Knows the run folder and Parquet; does not know where rows come from or why they are bad.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from muki_ray.store import Folder, fingerprint, part_name

FORMAT = 1
"""Version of what is written; another version makes another folder and another fingerprint."""

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema([("row_id", pa.int64()), ("source", pa.string()), ("reason", pa.string())])
_FLUSH_ROWS = 65536


class ShardWriter:
    """Cuts a stream of good rows into parts of exactly `shard_rows` (the last one may be smaller)."""

    def __init__(self, folder: Folder, shard_rows: int, text_columns: list[str]) -> None:
        self.schema = pa.schema([("row_id", pa.int64()), *((name, pa.string()) for name in text_columns)])
        self.rows_per_part: list[int] = []
        self._folder = folder
        self._shard_rows = shard_rows
        self._hashed = [name for name in text_columns if name != "label"]
        self._pending: list[pa.Table] = []
        self._rows = 0
        self._hash = hashlib.sha256(fingerprint([FORMAT, shard_rows, self._hashed]).encode())

    def add(self, rows: pa.Table) -> None:
        """Take rows of the schema; full shards are written at once."""
        self._pending.append(rows)
        self._rows += rows.num_rows
        if self._rows < self._shard_rows:
            return
        table = pa.concat_tables(self._pending)
        while table.num_rows >= self._shard_rows:
            self._write(table.slice(0, self._shard_rows))
            table = table.slice(self._shard_rows)
        self._pending, self._rows = [table], table.num_rows

    def flush(self) -> None:
        """Write what is left as the last, smaller part."""
        if self._rows:
            self._write(pa.concat_tables(self._pending))
        self._pending, self._rows = [], 0

    def digest(self) -> str:
        """Fingerprint of all rows written so far: ids and texts, not labels; 16 hex digits."""
        return self._hash.hexdigest()[:16]

    def _write(self, table: pa.Table) -> None:
        self._folder.write_table(part_name(len(self.rows_per_part)), table)
        self.rows_per_part.append(table.num_rows)
        # counts and lengths come before the bytes, so no two contents feed the hash alike
        self._hash.update(table.num_rows.to_bytes(8, "little"))
        self._hash.update(table["row_id"].to_numpy().astype("<i8").tobytes())
        for name in self._hashed:
            self._hash.update(pc.binary_length(table[name]).to_numpy().astype("<i8").tobytes())
            self._hash.update("".join(table[name].to_pylist()).encode())


class QuarantineWriter:
    """Bad rows as a Parquet file in memory, encoded as they come: a few bytes a row, not the row's text."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink,
            QUARANTINE_SCHEMA,
            compression="zstd",
            use_dictionary=["source", "reason"],
            store_schema=False,
        )
        self._pending: list[tuple[int, str, str]] = []

    def add(self, source: str, reasons: dict[int, str]) -> None:
        """Take bad rows of one source: row id to reason."""
        self.count += len(reasons)
        self.reasons.update(reasons.values())
        self._pending += [(row_id, source, reason) for row_id, reason in reasons.items()]
        if len(self._pending) >= _FLUSH_ROWS:
            self._flush()

    def close(self) -> bytes:
        """The finished file."""
        self._flush()
        self._writer.close()
        return self._sink.getvalue()

    def _flush(self) -> None:
        columns = list(zip(*self._pending, strict=True)) or [(), (), ()]
        self._writer.write_table(pa.table(columns, schema=QUARANTINE_SCHEMA))
        self._pending = []
