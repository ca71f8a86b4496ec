"""Supervision read while it is written: in its order, the same batches as when all is there, never waiting in vain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from muki_ray.errors import StudentError
from muki_ray.store import Folder, part_name
from muki_ray.student import data, streaming
from muki_ray.student.data import Batch, Supervision
from muki_ray.student.loop import run
from muki_ray.student.streaming import Stream, first_weight_mean
from tests.student import toy
from tests.student.test_data import flat, ids
from tests.student.test_loop import CPU, Resumable

PARTS = [7, 0, 9, 5, 8]


@dataclass
class Writer:
    """Writes the next shard whenever somebody waits; says that it has ended with the last that it writes."""

    source: Folder
    target: Folder
    shards: Iterator[int] = field(default_factory=lambda: iter(range(len(PARTS))))
    last: int = len(PARTS) - 1
    written: int = -1

    def is_open(self) -> bool:
        if self.written == self.last:
            return False
        self.written = next(self.shards)
        name = part_name(self.written)
        self.target.write_table(name, self.source.read_table(name))
        return self.written < self.last


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PAUSE_S", 0.0)
    monkeypatch.setattr(data, "_BUFFER_ROWS", 8)


def whole(tmp_path: Path, parts: list[int] = PARTS) -> Stream:
    """A stream of which all is there."""
    plain = toy.supervision(toy.write(tmp_path / "whole", parts), parts)
    return Stream(plain.folder, plain.rows_per_part, plain.split, plain.weight_scale)


def growing(stream: Stream, tmp_path: Path, last: int = len(PARTS) - 1) -> Stream:
    """The same, of which nothing is there yet."""
    target = Folder(str(tmp_path / "growing"))
    writer = Writer(stream.folder, target, last=last)
    return replace(stream, folder=target, watch=writer, kept=[])


def same(one: list[Batch], other: list[Batch]) -> bool:
    return ids(one) == ids(other) and all(
        np.array_equal(a.targets, b.targets) and np.array_equal(a.weights, b.weights)
        for a, b in zip(one, other, strict=True)
    )


def test_the_same_batches_as_when_all_is_there(tmp_path: Path) -> None:
    there = whole(tmp_path)
    coming = growing(there, tmp_path)
    batches, others = (list(one.train(0, 3, 5)) for one in (there, coming))
    assert same(batches, others)
    plain = Supervision(there.folder, there.rows_per_part, there.split, there.weight_scale)
    assert sorted(flat(batches)) == sorted(flat(plain.train(0, 3, 5)))
    assert flat(coming.held_out(4)) == flat(plain.held_out(4))
    shares = [list(replace(there, rank=rank, world=2, kept=[]).train(0, 3, 5)) for rank in (0, 1)]
    assert sorted(flat(shares[0]) + flat(shares[1])) == sorted(flat(batches))


def test_it_begins_with_the_first_shards_and_does_not_wait_for_the_others(tmp_path: Path) -> None:
    coming = growing(whole(tmp_path), tmp_path)
    assert isinstance(coming.watch, Writer)
    first = next(coming.train(0, 3, 5))
    assert coming.watch.written == 2, "the buffer is full"
    assert {int(name[1:]) for name in flat([first])} <= set(range(sum(PARTS[:3])))


def test_held_out_rows_are_put_aside_while_the_others_are_read(tmp_path: Path) -> None:
    stream = whole(tmp_path)
    wanted = flat(stream.held_out(4))
    assert wanted
    list(stream.train(0, 3, 5))
    list(stream.train(0, 3, 5))  # a second time: still each once
    stream.folder.remove(stream.folder.names())
    assert flat(stream.held_out(4)) == wanted


def test_a_shard_that_never_comes(tmp_path: Path) -> None:
    coming = growing(whole(tmp_path), tmp_path, last=2)
    with pytest.raises(
        StudentError, match=r"part-00003\.parquet is not there, and nobody writes it any more"
    ):
        list(coming.train(0, 3, 5))
    with pytest.raises(StudentError, match="nobody writes it"):
        list(replace(coming, watch=None).held_out(4))


def test_rows_that_were_set_aside_are_missing_and_none_too_many(tmp_path: Path) -> None:
    stream = whole(tmp_path)
    wanted = sorted(flat(stream.train(0, 3, 5)))
    table = stream.folder.read_table(part_name(2))
    stream.folder.write_table(part_name(2), table.slice(2))
    left = sorted(flat(stream.train(0, 3, 5)))
    assert set(left) == set(wanted) - {text.split()[0] for text in table["text"].to_pylist()[:2]}
    stream.folder.write_table(part_name(2), pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(StudentError, match=r"part-00002\.parquet has 10 rows, its corpus has 9"):
        list(stream.train(0, 3, 5))
    for shard in range(len(PARTS)):
        stream.folder.write_table(part_name(shard), table.slice(0, 0))
    with pytest.raises(StudentError, match="no row of the corpus has a finite answer"):
        list(stream.train(0, 3, 5))
    with pytest.raises(StudentError, match=f"none of the {stream.split.held_out_rows} rows that were to be"):
        list(stream.held_out(4))


def test_the_loop_trains_the_same_student_from_what_is_there_and_from_what_comes(tmp_path: Path) -> None:
    """And from what comes once more, after it was killed within the epoch."""
    job = toy.job(tmp_path, 40, epochs=1, checkpoint_steps=2)
    plain = job.supervision
    there = Stream(plain.folder, plain.rows_per_part, plain.split, plain.weight_scale)
    target = Folder(str(tmp_path / "growing"))
    coming = replace(there, folder=target, watch=Writer(there.folder, target, last=2), kept=[])
    trained, metrics = [], []
    for name, stream in (("there", there), ("coming", coming)):
        if name == "coming":
            with pytest.raises(KeyboardInterrupt):
                run(replace(job, supervision=stream), Resumable(tmp_path / name, device=CPU, dies_at=2))
            target.remove(target.names())
            stream = replace(coming, watch=Writer(there.folder, target, last=2), kept=[])
        world = Resumable(tmp_path / name, device=CPU)
        run(replace(job, supervision=stream), world)
        trained.append(load_file(tmp_path / name / "model.safetensors"))
        metrics.append(world.epochs)
    assert metrics[0][1:] == metrics[1] and metrics[1][-1]["finished"]
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_the_mean_weight_of_the_first_shards(tmp_path: Path) -> None:
    weights = np.array([1, 2, 3, 0, 0, 8], np.float32)
    folder = toy.write(tmp_path, [2, 1, 2, 1], weights=weights)
    assert first_weight_mean(folder, 2) == 2.0
    assert first_weight_mean(folder, 4) == pytest.approx(14 / 6)
    folder = toy.write(tmp_path, [2, 1, 2, 1], weights=np.zeros(6, np.float32))
    with pytest.raises(StudentError, match="no row of the first 2 shards has a weight"):
        first_weight_mean(folder, 2)
