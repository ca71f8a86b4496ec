"""Reads a Hugging Face data set: a `save_to_disk` folder, or a hub id as a stream.

Knows the `datasets` package; does not know shards or which rows are good.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muki_ray.corpus.rows import BATCH_ROWS, RawRows, Wanted, require_columns
from muki_ray.corpus.tables import class_names, table_rows
from muki_ray.errors import CorpusError, UserError


def is_saved(names: set[str]) -> bool:
    """Whether a folder with files of these names was written by `save_to_disk`."""
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= names


def read_saved(folder: str, split: str, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Rows of a `save_to_disk` folder; `split` counts where the folder holds several.

    Raises:
        CorpusError: not readable, no such split, a column is missing or of the wrong type.
    """
    import datasets

    try:
        data = datasets.load_from_disk(folder)
    except Exception as error:  # the package raises errors of many kinds, of its own and of what it uses
        raise CorpusError(f"cannot open {name} as a saved data set: {error}; save it again") from error
    if isinstance(data, dict):
        if split not in data:
            splits = ", ".join(map(repr, data))
            raise CorpusError(f"{name} has no split {split!r}; set split: to one of {splits}")
        data = data[split]
    return rows_of(data, wanted, name)


def read_hub(hub_id: str, split: str, revision: str | None, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Rows of a data set on the hub, streamed.

    Raises:
        CorpusError: it cannot be reached, has no such split, a column is missing or of the wrong type.
    """
    import datasets

    try:
        data = datasets.load_dataset(hub_id, split=split, revision=revision, streaming=True)
    except Exception as error:  # as above, and the network's errors
        raise CorpusError(
            f"cannot open data set {hub_id!r} (split {split!r}, revision {revision!r}): {error}; "
            "check id, split, revision and network"
        ) from error
    return rows_of(data, wanted, name)


def rows_of(data: Any, wanted: Wanted, name: str) -> Iterator[RawRows]:
    """Rows of a `datasets.Dataset` or `datasets.IterableDataset`."""
    classes = class_names(data.features, wanted.get("label"))
    try:
        if data.column_names is not None:  # a stream may not know its columns before its first row
            require_columns(name, wanted, data.column_names)
            data = data.select_columns(list(dict.fromkeys(wanted.values())))
        for table in data.with_format("arrow").iter(BATCH_ROWS):
            require_columns(name, wanted, table.column_names)
            yield table_rows(table, wanted, classes, name)
    except UserError:
        raise
    except Exception as error:  # as above: a stream meets the network's errors here
        raise CorpusError(f"cannot read {name}: {error}; run again, or read a saved copy") from error
