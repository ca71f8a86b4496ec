"""Reads text files as raw rows: JSON lines, CSV, TSV, plain text.

Knows how lines become rows, and why some do not; does not know where files lie, nor which texts are good.
Holds a batch (or the longest line) in memory, never the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from muki_ray.corpus.rows import BATCH_ROWS, RawRows, Wanted, require_columns
from muki_ray.errors import CorpusError

BATCH_BYTES = 16 << 20
MAX_CSV_FIELD = 16 << 20  # characters; stops an unclosed quote from swallowing the rest of a huge file
BOM = b"\xef\xbb\xbf"
_ONE_EACH = "(jsonl: one object per line)"  # a file that is one array is the usual mistake

Row = list[bytes | None] | str
"""Values in the order of the roles, or the reason why the row cannot be taken apart."""


def read_text(stream: BinaryIO, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """A line a row; a newline at the end starts no further row."""
    require_columns(name, wanted, ["text"])
    return _batches(([line] for line in _lines(stream)), wanted)


def read_jsonl(stream: BinaryIO, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """A JSON object per line; every line is a row, a blank one too."""
    return _batches(_json_rows(stream, wanted, name), wanted)


def read_csv(stream: BinaryIO, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Comma-separated values with a header; blank lines are no rows."""
    return _batches(_csv_rows(stream, wanted, name, ","), wanted)


def read_tsv(stream: BinaryIO, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Tab-separated values with a header, quoted as CSV is."""
    return _batches(_csv_rows(stream, wanted, name, "\t"), wanted)


def _batches(rows: Iterable[Row], wanted: Wanted) -> Iterator[RawRows]:
    """Group rows, by count and by bytes."""
    nothing: list[bytes | None] = [None] * len(wanted)
    values: list[list[bytes | None]] = []
    faults: dict[int, str] = {}
    size = 0

    def batch() -> RawRows:
        columns = (pa.array([row[i] for row in values], pa.binary()) for i in range(len(wanted)))
        return RawRows(dict(zip(wanted, columns, strict=True)), faults)

    for row in rows:
        if isinstance(row, str):
            faults[len(values)] = row
            row = nothing
        values.append(row)
        size += sum(len(value) for value in row if value is not None)
        if len(values) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch()
            values, faults, size = [], {}, 0
    if values:
        yield batch()


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(stream):
        if number == 0:
            line = line.removeprefix(BOM)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _json_rows(stream: BinaryIO, wanted: Wanted, name: str) -> Iterator[Row]:
    unseen = set(wanted.values())
    first: dict[str, Any] | None = None
    for line in _lines(stream):
        if not line.strip():
            yield "blank JSON line"
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError:
            yield "JSON line is not UTF-8"
            continue
        except (ValueError, RecursionError):
            yield f"malformed JSON {_ONE_EACH}"
            continue
        if not isinstance(record, dict):
            yield f"JSON line is no object {_ONE_EACH}"
            continue
        first = record if first is None else first
        unseen -= record.keys()
        yield _json_row(record, wanted)
    if first is not None and unseen:  # one line may lack a key; a whole file that does is the wrong file
        absent = {role: column for role, column in wanted.items() if column in unseen}
        require_columns(name, absent, list(first))


def _json_row(record: dict[str, Any], wanted: Wanted) -> Row:
    row: list[bytes | None] = []
    for role, column in wanted.items():
        if column not in record:
            return f"no key for {role}"
        value = record[column]
        if role == "label" and type(value) is int:  # not bool
            value = str(value)
        if value is not None and not isinstance(value, str):
            return f"{role} is no string"
        try:
            row.append(None if value is None else value.encode())
        except UnicodeEncodeError:
            return f"{role} has a lone surrogate"
    return row


def _csv_rows(stream: BinaryIO, wanted: Wanted, name: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CSV_FIELD))
    # surrogateescape carries undecodable bytes through to the checks, where they cost one row
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = next((row for row in rows if row), None)
        except csv.Error as error:
            raise CorpusError(
                f"{name} has no readable header: {error}; set format: if it is no CSV"
            ) from error
        if header is None:
            return
        require_columns(name, wanted, header)
        places = [header.index(column) for column in wanted.values()]
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield "malformed CSV"
                continue
            if len(row) == len(header):
                yield [row[place].encode("utf-8", "surrogateescape") for place in places]
            elif row:
                yield "wrong number of CSV fields"
