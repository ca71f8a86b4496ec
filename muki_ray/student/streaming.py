"""Supervision that is read while it is still being written: shards in the corpus' order, each once, when it is there.

Which rows are held out, and how many steps an epoch has, is known from the corpus, whose rows have the same ids. Rows
that a teacher had no finite answer to are missing from the supervision; then an epoch has a few steps less than planned.
Knows folders; who writes them, and whether they still do, it asks a `Watch`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from muki_ray.errors import StudentError
from muki_ray.store import Folder, part_name
from muki_ray.student.data import Batch, Encode, Supervision

# seconds between two looks for a shard: at first, and at most
_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class Watch(Protocol):
    """Who knows whether the supervision is still being written. Cheap to pickle."""

    def is_open(self) -> bool:
        """Whether more shards may come."""


@dataclass(frozen=True)
class Stream(Supervision):
    """Reader of a supervision folder that may still grow, for one epoch.

    Attributes:
        rows_per_part: of the corpus; of the supervision at most.
        watch: asked while a shard is not there; None: all shards are.
        kept: held-out rows, put aside while the others are read, so that no shard is read twice.
    """

    watch: Watch | None = None
    kept: list[pa.Table] = field(default_factory=list, repr=False, compare=False)

    def train(
        self, epoch: int, batch_size: int, seed: int, encode: Encode | None = None, skip: int = 0
    ) -> Iterator[Batch]:
        """As of any supervision, but shards come in the corpus' order.

        Raises:
            StudentError: there was no row; or a shard never comes.
        """
        self.kept.clear()
        batches = skip
        for batch in super().train(epoch, batch_size, seed, encode, skip):
            batches += 1
            yield batch
        if not batches:
            raise StudentError(
                "no row of the corpus has a finite answer from every teacher; score them one by one to find which fails"
            )

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        return np.arange(len(self.rows_per_part))

    def _part(self, shard: int, held_out: bool) -> pa.Table:
        table = self._awaited(part_name(shard))
        if len(table) > self.rows_per_part[shard]:
            raise StudentError(
                f"{self.folder.sub(part_name(shard)).shown} has {len(table)} rows, its corpus has "
                f"{self.rows_per_part[shard]}; delete its folder and run again"
            )
        mask = self.split.held_out(table["row_id"].to_numpy())
        if not held_out:
            self.kept.append(table.filter(pa.array(mask)))
        return table.filter(pa.array(mask if held_out else ~mask))

    def _held_out(self) -> list[pa.Table]:
        tables = self.kept if len(self.kept) == len(self.rows_per_part) else super()._held_out()
        if not any(map(len, tables)):
            raise StudentError(
                f"none of the {self.split.held_out_rows} rows that were to be held out has a finite answer from every "
                "teacher; raise training.validation, or look into the supervision's quarantine"
            )
        return tables

    def _awaited(self, name: str) -> pa.Table:
        """A shard, once it is there.

        Raises:
            StudentError: it never comes.
        """
        pause = _PAUSE_S
        while not self.folder.has(name):
            # in this order: the last thing that a writer does may be to write this very shard
            if (self.watch is None or not self.watch.is_open()) and not self.folder.has(name):
                raise StudentError(
                    f"{self.folder.sub(name).shown} is not there, and nobody writes it any more; run again"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return self.folder.read_table(name)


def first_weight_mean(folder: Folder, shards: int) -> float:
    """Mean weight of the rows of so many first shards.

    Raises:
        StudentError: none of them counts.
    """
    weights = np.concatenate(
        [folder.read_table(part_name(shard), ["weight"])["weight"].to_numpy() for shard in range(shards)]
    )
    if not weights.sum():
        raise StudentError(
            f"no row of the first {shards} shards has a weight, so that nothing can be learned from them; is the corpus in "
            "random order? Lower method.abstain, or set training.start: after"
        )
    return float(weights.mean(dtype=np.float64))
