"""Supervision as batches: the same global batches whatever the number of workers.

Every worker walks the same shuffled stream of rows, cuts the same global batches and keeps its slice of each,
so all take equal steps, no row is dropped, and the training does not depend on the cluster's shape. Batches
hold rows of like length in tokens: every worker tokenizes a stretch of the stream before it is cut, and uses what
it made of its own rows. Knows Parquet and numpy; what a tokenizer is it does not know.

Shapes: N rows, B rows of one worker's batch, C union labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from muki_ray import filesystem as locations
from muki_ray.errors import StudentError
from muki_ray.hashing import row_hash
from muki_ray.store import Folder, part_name

# more held-out rows than this tell no more about which checkpoint is best
_MOST_HELD_OUT = 10_000
# rows shuffled together; large enough to mix shards, small enough for memory
_BUFFER_ROWS = 65_536
# batches sorted by length together: near-equal lengths, still random
_SORTED_BATCHES = 64
_MASK = 2**64 - 1  # any integer is a seed, negative ones too

# what a tokenizer makes of rows: a list per row under each name, such as `input_ids`
Encoded: TypeAlias = dict[str, list[list[int]]]
Encode: TypeAlias = Callable[[list[str], list[str] | None], Encoded]


@dataclass(frozen=True)
class Batch:
    """One worker's slice: texts, `targets` `[B, C]`, `weights` `[B]`; `rows` of the global batch it is part of.

    `encoded` are its texts as the tokenizer gave them, unpadded; None where no tokenizer was at hand. `beside` is what
    an objective made of the texts for itself, an entry per micro-batch.
    """

    texts: list[str]
    pairs: list[str] | None
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    rows: int
    encoded: Encoded | None = None
    beside: Sequence[Any] = ()


@dataclass(frozen=True)
class Split:
    """Which rows are held out: those whose hash is below `threshold`. Counted once, in the driver."""

    threshold: int
    seed: int
    train_rows: int
    held_out_rows: int

    def held_out(self, row_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask of the held-out rows, `[N]`; depends on nothing but the row's id."""
        return row_hash(row_ids, self.seed) < np.uint64(self.threshold)


def plan_split(folder: Folder, rows_per_part: list[int], fraction: float, seed: int) -> Split:
    """Choose the held-out rows: about `fraction` of all, at most 10,000, at least one.

    Raises:
        StudentError: fewer than two rows.
    """
    total = sum(rows_per_part)
    if total < 2:
        raise StudentError(
            f"the supervision has too few rows ({total}); training needs at least 2, one of them held out: give a larger corpus"
        )
    fraction = min(fraction, _MOST_HELD_OUT / total)
    threshold = int(fraction * 2**64)
    held, least = 0, 2**64 - 1
    for shard in range(len(rows_per_part)):
        hashes = row_hash(folder.read_table(part_name(shard), ["row_id"])["row_id"].to_numpy(), seed)
        held += int((hashes < np.uint64(threshold)).sum())
        least = min(least, int(hashes.min())) if len(hashes) else least
    if held == 0:  # a tiny corpus: hold out the row with the smallest hash
        threshold, held = least + 1, 1
    if held == total:
        raise StudentError(
            f"all {total} rows of the supervision would be held out; lower training.validation ({fraction:g})"
        )
    return Split(threshold, seed, total - held, held)


@dataclass(frozen=True)
class Supervision:
    """Reader of a finished supervision folder, for one worker of `world`.

    Attributes:
        weight_scale: weights are divided by it (the corpus mean, or 1 for the paper's raw weights).
    """

    folder: Folder
    rows_per_part: tuple[int, ...]
    split: Split
    weight_scale: float
    rank: int = 0
    world: int = 1

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of one epoch."""
        return -(-self.split.train_rows // batch_size)

    def train(
        self, epoch: int, batch_size: int, seed: int, encode: Encode | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """This worker's slices of one epoch's global batches of `batch_size` rows (the last may be smaller).

        Args:
            encode: texts and pairs to token ids; without it, characters tell which rows are of like length.
            skip: leave out so many global batches at the beginning, as cheaply as can be.
        """
        rng = np.random.default_rng([seed & _MASK, epoch])
        waiting: list[pa.Table] = []
        rows = 0
        order = self._order(rng)
        for position, shard in enumerate(order):
            table = self._part(int(shard), held_out=False)
            waiting.append(table)
            rows += len(table)
            last = position + 1 == len(order)
            if rows < _BUFFER_ROWS and not last:
                continue
            buffer = pa.concat_tables(waiting).combine_chunks()  # taking rows from chunks copies them all
            full = len(buffer) if last else len(buffer) - len(buffer) % batch_size
            shuffled = rng.permutation(len(buffer))
            group = batch_size * _SORTED_BATCHES
            for start in range(0, full, group):
                size = min(start + group, full) - start
                count = -(-size // batch_size)
                if skip >= count:  # nobody wants to know how long these rows are
                    _drawn(size // batch_size, rng)
                    skip -= count
                    continue
                stretch = buffer.take(pa.array(shuffled[start : start + size]))
                encoded = _encoded(stretch, encode)
                takes = _like_lengths(_lengths(stretch, encoded), batch_size, rng)
                for take in islice(takes, skip, None):
                    yield self._slice(stretch, take, encoded)
                skip = 0
            waiting = [buffer.take(pa.array(shuffled[full:]))]
            rows = len(waiting[0])

    def held_out(self, batch_size: int, encode: Encode | None = None) -> Iterator[Batch]:
        """This worker's share of the held-out rows; `encode` as in `train`."""
        table = pa.concat_tables(self._held_out()).combine_chunks()
        encoded = _encoded(table, encode)
        order = np.argsort(_lengths(table, encoded), kind="stable")[::-1]
        for start in range(0, len(table), batch_size):
            yield self._slice(table, order[start : start + batch_size], encoded)

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Shards in the order in which an epoch reads them."""
        return rng.permutation(len(self.rows_per_part))

    def _part(self, shard: int, held_out: bool) -> pa.Table:
        table = self.folder.read_table(part_name(shard))
        if len(table) != self.rows_per_part[shard]:
            raise StudentError(
                f"{locations.redact(self.folder.path(part_name(shard)))} has {len(table)} rows, its manifest says "
                f"{self.rows_per_part[shard]}; delete its folder and run again"
            )
        mask = self.split.held_out(table["row_id"].to_numpy())
        return table.filter(pa.array(mask if held_out else ~mask))

    def _held_out(self) -> list[pa.Table]:
        return [self._part(shard, held_out=True) for shard in range(len(self.rows_per_part))]

    def _slice(self, table: pa.Table, take: NDArray[np.int64], encoded: Encoded | None) -> Batch:
        """This worker's rows of a global batch. A worker without any gets one row of weight 0: all must step."""
        mine = take[self.rank :: self.world]
        idle = len(mine) == 0
        rows = take[:1] if idle else mine
        part = table.take(pa.array(rows))
        flat = part["target"].combine_chunks().flatten().to_numpy()
        targets = flat.reshape(len(part), -1).copy()  # Arrow memory is read-only, Torch wants to own it
        weights = (
            np.zeros(1, np.float32) if idle else part["weight"].to_numpy() / np.float32(self.weight_scale)
        )
        own = None if encoded is None else {name: [of[i] for i in rows] for name, of in encoded.items()}
        texts, pairs = _texts(part)
        return Batch(texts, pairs, targets, weights.astype(np.float32), len(take), own)


def _texts(table: pa.Table) -> tuple[list[str], list[str] | None]:
    pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
    return table["text"].to_pylist(), pairs


def _encoded(table: pa.Table, encode: Encode | None) -> Encoded | None:
    return encode(*_texts(table)) if encode is not None and len(table) else None


def _lengths(table: pa.Table, encoded: Encoded | None) -> NDArray[np.int64]:
    """Tokens per row, `[N]`; characters where nobody tokenized."""
    if encoded is not None:
        return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
    lengths = pa.compute.utf8_length(table["text"]).to_numpy()
    if "text_pair" in table.column_names:
        lengths = lengths + pa.compute.utf8_length(table["text_pair"]).to_numpy()
    return np.asarray(lengths, dtype=np.int64)


def _like_lengths(
    lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Cut shuffled rows of these lengths into batches of like length, in random order; a short batch comes last."""
    whole = len(lengths) - len(lengths) % batch_size
    batches = np.argsort(lengths[:whole], kind="stable").reshape(-1, batch_size)
    yield from batches[_drawn(len(batches), rng)]
    if whole < len(lengths):
        yield np.arange(whole, len(lengths))


def _drawn(batches: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """What is drawn for so many whole batches of like length."""
    return rng.permutation(batches)
