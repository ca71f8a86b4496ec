"""Reads columnar data as raw rows: Parquet files, and Arrow tables from elsewhere.

Knows Arrow's types; does not know where files lie, nor which texts are good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from muki_ray.corpus.rows import BATCH_ROWS, RawRows, Wanted, require_columns
from muki_ray.errors import CorpusError


def read_parquet(file: Any, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Rows of a Parquet file (a seekable file object or `pyarrow.NativeFile`)."""
    # a buffered stream in place of whole column chunks: a file of one huge row group stays cheap
    reader = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    schema = reader.schema_arrow
    require_columns(name, wanted, schema.names)
    classes = _stored_classes(schema, wanted.get("label"))
    for batch in reader.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(wanted.values()))):
        yield table_rows(batch, wanted, classes, name)


def _stored_classes(schema: pa.Schema, label: str | None) -> list[str] | None:
    """Label names that Hugging Face `datasets` leaves in the metadata of its Parquet files."""
    if label is None or b"huggingface" not in (schema.metadata or {}):
        return None
    import datasets

    return class_names(datasets.Features.from_arrow_schema(schema), label)


def class_names(features: Any, label: str | None) -> list[str] | None:
    """Names behind the integers of a `datasets.ClassLabel` column; None for every other column."""
    names = getattr((features or {}).get(label), "names", None)
    return list(names) if names else None


def table_rows(
    table: pa.Table | pa.RecordBatch, wanted: Wanted, classes: list[str] | None, name: str
) -> RawRows:
    """The wanted columns of a table as raw rows.

    Raises:
        CorpusError: a text column is not of a string type, a label column neither string nor integer.
    """
    columns = {}
    for role, column in wanted.items():
        values = table.column(column)
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if role == "label" and pa.types.is_integer(values.type):
            values = _names_of(values, classes) if classes else values.cast(pa.string())
        elif not _is_text(values.type):
            need = "a string or integer" if role == "label" else "a string"
            raise CorpusError(f"column {column!r} of {name} is {values.type}; {role} must be {need} column")
        columns[role] = values.cast(pa.binary())
    return RawRows(columns, {})


def _is_text(kind: pa.DataType) -> bool:
    # bytes count as text: older writers leave the string mark out; null is a column without any value
    strings = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*strings, pa.binary(), pa.large_binary(), pa.binary_view(), pa.null())


def _names_of(labels: pa.Array, classes: list[str]) -> pa.Array:
    """Class names; datasets writes -1 for 'no label'."""
    names = [classes[i] if i is not None and 0 <= i < len(classes) else None for i in labels.to_pylist()]
    return pa.array(names, pa.string())
