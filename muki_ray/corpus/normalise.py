"""Turns text from anywhere into one corpus: numbered rows in fixed shards, bad rows set aside.

Knows shards, quarantine and fingerprints; does not know formats or where files lie
(`sources`). Reads as a stream: no more than a shard and a batch are held in memory, and the quarantine in
its compressed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from muki_ray.config import TextSource
from muki_ray.corpus.checks import check
from muki_ray.corpus.rows import RawRows, Wanted, roles
from muki_ray.corpus.sources import Source, find, read
from muki_ray.corpus.writing import FORMAT, QUARANTINE, QuarantineWriter, ShardWriter
from muki_ray.errors import CorpusError, StoreError
from muki_ray.store import MANIFEST, Folder, RunFolder, fingerprint, part_name
from muki_ray.uris import redact

# longer lists of reasons say how many more there are
_MOST_REASONS = 3


@dataclass(frozen=True)
class Corpus:
    """A normalised corpus. Cheap to send to another process.

    Attributes:
        folder: holds `part-*.parquet`, `manifest.json`, and `quarantine.parquet` where rows are bad.
        fingerprint: of row ids, texts and sharding, wherever they came from; labels are not in it.
        rows_per_part: good rows of each shard.
        quarantined: bad rows.
        reasons: why, and how many rows each, the most frequent first.
        pair: whether rows have a second text, `text_pair`.
    """

    folder: Folder
    fingerprint: str
    rows_per_part: tuple[int, ...]
    quarantined: int
    reasons: tuple[tuple[str, int], ...]
    pair: bool

    @property
    def rows_in(self) -> int:
        """Rows read from the source, good and bad."""
        return self.rows_out + self.quarantined

    @property
    def rows_out(self) -> int:
        """Good rows, over all shards."""
        return sum(self.rows_per_part)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.rows_per_part)

    @property
    def set_aside(self) -> str:
        """One line about the bad rows: how many, why, and where they are listed; empty where there are none."""
        if not self.quarantined:
            return ""
        return (
            f"{self.quarantined:,} of {self.rows_in:,} rows set aside ({_shown_reasons(self.reasons)}), "
            f"see {self.folder.sub(QUARANTINE).shown}"
        )

    def read(self, shard: int, columns: list[str] | None = None) -> pa.Table:
        """One shard: row_id int64, text string, and text_pair and label where the corpus has them.

        Raises:
            StoreError: the file is missing or damaged, or disagrees with the manifest.
        """
        if not 0 <= shard < self.shards:
            raise StoreError(f"{redact(self.folder.location)} has no shard {shard}; it has {self.shards}")
        name = part_name(shard)
        shown = redact(self.folder.path(name))
        remedy = "delete the folder and run again"
        table = self.folder.read_table(name)
        if table.num_rows != self.rows_per_part[shard]:
            raise StoreError(
                f"{shown} has {table.num_rows} rows, the manifest says {self.rows_per_part[shard]}; {remedy}"
            )
        columns = table.column_names if columns is None else columns
        missing = sorted(set(columns) - set(table.column_names))
        if missing:
            raise StoreError(f"{shown} has no column {missing[0]!r}, only {table.column_names}")
        return table.select(columns)


def normalise(
    source: TextSource,
    run: RunFolder,
    *,
    shard_rows: int,
    limit: int | None = None,
    label: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Read a source into the run's corpus folder, or take what an earlier run left there.

    A row's id is its position in the input, bad rows counted. What is there already is taken when paths,
    sizes and times of all files and all options are the same; a hub data set counts as the same while id,
    revision and split are, so name a revision where it may change.

    Args:
        source: what to read.
        run: where to write.
        shard_rows: good rows per shard.
        limit: read no more than so many rows, good or bad.
        label: also keep this column, as `label`.
        progress: called with the number of rows read so far, after each batch.

    Raises:
        CorpusError: the source cannot be read as configured, or has no good row.
        StoreError: what an earlier run left disagrees with its manifest.
    """
    wanted = roles(source.text, label)
    items = find(source)
    options = {"format": FORMAT, "columns": wanted, "shard_rows": shard_rows, "limit": limit}
    folder = run.corpus(fingerprint({**options, "sources": [[item.format, item.state] for item in items]}))
    manifest = folder.manifest()
    if manifest is not None:
        return _reopen(folder, manifest)

    shards = ShardWriter(folder, shard_rows, list(wanted))
    quarantine = QuarantineWriter()
    rows_in = 0
    for item, rows in _head(items, wanted, limit):
        columns, reasons = check(rows)
        good = np.ones(len(rows), dtype=bool)
        good[list(reasons)] = False
        ids = np.arange(rows_in, rows_in + len(rows), dtype=np.int64)
        shards.add(pa.table({"row_id": ids, **columns}, schema=shards.schema).filter(pa.array(good)))
        quarantine.add(item.name, {rows_in + index: reason for index, reason in sorted(reasons.items())})
        rows_in += len(rows)
        if progress is not None:
            progress(rows_in)
    shards.flush()
    _require_rows(source, rows_in, quarantine)

    written = {part_name(shard) for shard in range(len(shards.rows_per_part))}
    if quarantine.count:
        folder.write_bytes(QUARANTINE, quarantine.close())
        written.add(QUARANTINE)
    folder.remove(folder.names() - written)  # a killed run may have left parts of its own
    content = {
        **options,
        "source": [redact(path) for path in source.path],
        "files": len(items),
        "fingerprint": shards.digest(),
        "rows_in": rows_in,
        "rows_out": sum(shards.rows_per_part),
        "quarantined": quarantine.count,
        "reasons": dict(quarantine.reasons),
    }
    folder.finish(content, shards.rows_per_part)
    return _reopen(folder, {**content, "rows_per_part": shards.rows_per_part})


def _head(items: list[Source], wanted: Wanted, limit: int | None) -> Iterator[tuple[Source, RawRows]]:
    """Batches of all sources, one after the other, cut after `limit` rows."""
    left = limit
    for item in items:
        for rows in read(item, wanted):
            if left is not None:
                rows = rows.head(left)
                left -= len(rows)
            yield item, rows
            if left == 0:
                return


def _require_rows(source: TextSource, rows_in: int, quarantine: QuarantineWriter) -> None:
    """Raise CorpusError unless there is a good row."""
    shown = [redact(path) for path in source.path]
    if rows_in == 0:
        raise CorpusError(f"no row in {shown}; give a source that has text")
    if rows_in == quarantine.count:
        reasons = _shown_reasons(_most_frequent(quarantine.reasons))
        raise CorpusError(f"no good row among {rows_in} in {shown} ({reasons}); check text: and format:")


def _most_frequent(reasons: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The largest count first; of equal ones the first by name, so that a stored list gives the same order."""
    return tuple(sorted(reasons.items(), key=lambda one: (-one[1], one[0])))


def _shown_reasons(reasons: tuple[tuple[str, int], ...]) -> str:
    parts = [f"{reason}: {count:,}" for reason, count in reasons[:_MOST_REASONS]]
    rest = [count for _, count in reasons[_MOST_REASONS:]]
    if rest:
        parts.append(f"{len(rest)} other {'reason' if len(rest) == 1 else 'reasons'}: {sum(rest):,}")
    return ", ".join(parts)


def _reopen(folder: Folder, manifest: dict[str, Any]) -> Corpus:
    """The corpus that a complete folder holds."""
    try:
        corpus = Corpus(
            folder=folder,
            fingerprint=manifest["fingerprint"],
            rows_per_part=tuple(manifest["rows_per_part"]),
            quarantined=manifest["quarantined"],
            reasons=_most_frequent(manifest["reasons"]),
            pair="text_pair" in manifest["columns"],
        )
    except KeyError as error:
        raise StoreError(
            f"{redact(folder.path(MANIFEST))} has no {error}; delete the folder and run again"
        ) from error
    if corpus.quarantined and not folder.has(QUARANTINE):
        raise StoreError(f"{redact(folder.path(QUARANTINE))} is missing; delete the folder and run again")
    return corpus
