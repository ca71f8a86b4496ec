"""Batches: every row once, the same global batches for every number of workers, held-out rows never in training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muki_ray.errors import StudentError
from muki_ray.store import part_name
from muki_ray.student import data
from muki_ray.student.data import Batch, Split, Supervision, plan_split
from tests.student import toy


def ids(batches: Iterable[Batch]) -> list[list[str]]:
    """First words of the rows that count, batch by batch: they name the rows."""
    return [[t.split()[0] for t, w in zip(b.texts, b.weights, strict=True) if w > 0] for b in batches]


def flat(batches: Iterable[Batch]) -> list[str]:
    return [name for batch in ids(batches) for name in batch]


def workers(reader: Supervision, world: int) -> list[Supervision]:
    return [replace(reader, rank=rank, world=world) for rank in range(world)]


@st.composite
def _corpora(draw: st.DrawFn) -> tuple[list[int], float, int]:
    parts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda p: sum(p) >= 4))
    return parts, draw(st.sampled_from([0.01, 0.2, 0.5])), draw(st.integers(-5, 5))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpus=_corpora(),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
    buffer=st.sampled_from([1, 5, 12, 1000]),
    group=st.sampled_from([1, 2, 64]),
)
def test_one_epoch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    corpus: tuple[list[int], float, int],
    batch_size: int,
    epoch: int,
    buffer: int,
    group: int,
) -> None:
    parts, fraction, seed = corpus
    monkeypatch.setattr(data, "_BUFFER_ROWS", buffer)
    monkeypatch.setattr(data, "_SORTED_BATCHES", group)
    folder = toy.write(tmp_path, parts)
    try:
        reader = toy.supervision(folder, parts, fraction, seed)
    except StudentError:  # chance held out every row of a tiny corpus
        return
    all_rows = {f"t{i}" for i in range(sum(parts))}
    held = flat(reader.held_out(batch_size))
    single = list(reader.train(epoch, batch_size, seed))
    # every row once: in training or held out
    assert sorted([*flat(single), *held]) == sorted(all_rows)
    assert len(held) == reader.split.held_out_rows >= 1
    assert len(flat(single)) == reader.split.train_rows >= 1
    # only the last batch may be short, however the buffers fall
    assert len(single) == reader.steps(batch_size)
    assert [b.rows for b in single[:-1]] == [batch_size] * (len(single) - 1)
    assert 1 <= single[-1].rows <= batch_size
    for world in (2, 3, 4):
        slices = [list(one.train(epoch, batch_size, seed)) for one in workers(reader, world)]
        assert {len(batches) for batches in slices} == {len(single)}
        for number, whole in enumerate(single):
            own = [batches[number] for batches in slices]
            assert sorted(flat(own)) == sorted(ids([whole])[0])
            assert {batch.rows for batch in own} == {whole.rows}
            assert all(len(batch.texts) == len(batch.targets) == len(batch.weights) >= 1 for batch in own)
        shares = [list(one.held_out(batch_size)) for one in workers(reader, world)]
        assert sorted(name for share in shares for name in flat(share)) == sorted(held)
        assert {len(share) for share in shares} == {len(list(reader.held_out(batch_size)))}


def test_epochs_differ_and_seeds_repeat(tmp_path: Path) -> None:
    parts = [20, 30]
    reader = toy.supervision(toy.write(tmp_path, parts), parts)
    first = ids(reader.train(0, 8, seed=1))
    assert ids(reader.train(0, 8, seed=1)) == first
    assert ids(reader.train(1, 8, seed=1)) != first
    assert ids(reader.train(0, 8, seed=2)) != first
    assert flat(reader.held_out(8)) == flat(reader.held_out(8))


def test_the_split_is_by_row_not_by_place(tmp_path: Path) -> None:
    rows = 40
    names = [f"t{i}" for i in range(rows)]
    whole = toy.supervision(toy.write(tmp_path / "a", [rows], names), [rows])
    parts = toy.supervision(toy.write(tmp_path / "b", [13, 27], names), [13, 27])
    assert whole.split == parts.split
    assert sorted(flat(whole.held_out(4))) == sorted(flat(parts.held_out(4)))
    other = toy.supervision(toy.write(tmp_path / "c", [rows], names), [rows], seed=1)
    assert sorted(flat(other.held_out(4))) != sorted(flat(whole.held_out(4)))


def test_share_of_held_out_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [4000]
    folder = toy.write(tmp_path, parts)
    # 4000 draws of 0.05: 200 with a standard deviation of 14
    assert 130 <= plan_split(folder, parts, 0.05, seed=0).held_out_rows <= 270
    monkeypatch.setattr(data, "_MOST_HELD_OUT", 40)
    assert 15 <= plan_split(folder, parts, 0.5, seed=0).held_out_rows <= 65


def test_two_rows_are_enough(tmp_path: Path) -> None:
    reader = toy.supervision(toy.write(tmp_path, [1, 1]), [1, 1], fraction=1e-9)
    assert (reader.split.train_rows, reader.split.held_out_rows) == (1, 1)
    assert sorted(flat(reader.train(0, 8, 0)) + flat(reader.held_out(8))) == ["t0", "t1"]


def test_the_smallest_hash_is_held_out_where_chance_holds_out_none(tmp_path: Path) -> None:
    row_ids = np.arange(50)
    folder = toy.write(tmp_path, [50], row_ids=row_ids.tolist())
    split = plan_split(folder, [50], 1e-12, seed=3)
    hashes = data.row_hash(row_ids, 3)
    assert split.held_out(row_ids).tolist() == (hashes == hashes.min()).tolist()
    assert (split.train_rows, split.held_out_rows) == (49, 1)


@pytest.mark.parametrize(("threshold", "expected"), [(0, 0), (2**64 - 1, 100)])
def test_threshold_edges(threshold: int, expected: int) -> None:
    assert int(Split(threshold, 0, 0, 0).held_out(np.arange(100)).sum()) == expected


def test_hash_is_splitmix64() -> None:
    # state after one step from 0, and from golden ratio's own step: the published first two outputs
    row_ids = np.array([0, -0x61C8864680B583EB], dtype=np.int64)
    assert data.row_hash(row_ids, 0).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@pytest.mark.parametrize("parts", [[1], [0, 1], [0]])
def test_too_few_rows(tmp_path: Path, parts: list[int]) -> None:
    with pytest.raises(StudentError, match=rf"too few rows \({sum(parts)}\).*give a larger corpus$"):
        plan_split(toy.write(tmp_path, parts), parts, 0.5, 0)


def test_all_rows_held_out(tmp_path: Path) -> None:
    folder = toy.write(tmp_path, [3])
    with pytest.raises(StudentError, match=r"all 3 rows .* lower training.validation \(0\.999999\)"):
        plan_split(folder, [3], 0.999999, 0)


def test_an_idle_worker_gets_a_row_that_does_not_count(tmp_path: Path) -> None:
    reader = toy.supervision(toy.write(tmp_path, [2]), [2], fraction=1e-9)
    busy, idle = (list(one.train(0, 8, 0)) for one in workers(reader, 2))
    assert len(busy) == len(idle) == 1
    assert busy[0].weights.tolist() == [1.0]
    assert idle[0].weights.tolist() == [0.0]
    assert idle[0].texts == busy[0].texts
    assert busy[0].rows == idle[0].rows == 1


def test_what_a_batch_holds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows, parts = 30, [11, 19]
    targets = rng.dirichlet(np.ones(3), size=rows).astype(np.float32)
    weights = rng.random(rows).astype(np.float32) + 0.5
    folder = toy.write(tmp_path, parts, None, targets, weights, pairs=[f"p{i}" for i in range(rows)])
    reader = toy.supervision(folder, parts, weight_scale=0.5)
    seen = 0
    for batch in [*reader.train(0, 4, 0), *reader.held_out(4)]:
        own = [int(text.split()[0][1:]) for text in batch.texts]
        assert batch.pairs == [f"p{i}" for i in own]
        np.testing.assert_array_equal(batch.targets, targets[own])
        np.testing.assert_allclose(batch.weights, weights[own] * 2, rtol=1e-6)
        assert (batch.targets.dtype, batch.weights.dtype) == (np.float32, np.float32)
        assert batch.targets.flags.writeable
        seen += len(own)
    assert seen == rows


def test_rows_of_like_length_share_a_batch(tmp_path: Path) -> None:
    rows = 64
    texts = ["a" * (1 + i) for i in range(rows)]
    pairs = ["b" * (2 * i) for i in range(rows)]
    reader = toy.supervision(toy.write(tmp_path, [rows], texts, pairs=pairs), [rows], fraction=1e-9)
    batches = list(reader.train(0, 4, 0))
    spread = [max(map(len, b.texts)) - min(map(len, b.texts)) for b in batches if b.rows == 4]
    # 63 rows in order of length, less the three of the short batch: neighbours
    assert max(spread) <= 3 + 3
    firsts = [len(b.texts[0]) for b in batches]
    assert firsts != sorted(firsts), "the batches themselves come in random order"
    held = toy.supervision(toy.write(tmp_path, [rows], texts), [rows], fraction=0.5).held_out(4)
    lengths = [len(text) for batch in held for text in batch.texts]
    assert lengths == sorted(lengths, reverse=True)


def test_a_part_with_other_rows_than_the_manifest_says(tmp_path: Path) -> None:
    parts = [6, 6]
    folder = toy.write(tmp_path, parts)
    reader = toy.supervision(folder, parts)
    folder.write_table(part_name(1), folder.read_table(part_name(1)).slice(0, 4))
    message = r"part-00001\.parquet has 4 rows, its manifest says 6; delete its folder"
    with pytest.raises(StudentError, match=message):
        list(reader.train(0, 4, 0))
    with pytest.raises(StudentError, match=message):
        list(reader.held_out(4))


# -- tokens ----------------------------------------------------------------------------------------------


def encode(texts: list[str], pairs: list[str] | None) -> data.Encoded:
    """One token per `x`, so that characters and tokens disagree; the first token names the row."""
    both = [a + b for a, b in zip(texts, pairs or [""] * len(texts), strict=True)]
    return {"input_ids": [[int(text.split()[0][1:]), *[7] * text.count("x")] for text in both]}


def _misleading(rows: int) -> list[str]:
    """The longer in tokens, the shorter in characters."""
    return [f"t{i} " + "x" * (i % 10) + "o" * (40 - 4 * (i % 10)) for i in range(rows)]


def test_batches_are_of_like_length_in_tokens(tmp_path: Path) -> None:
    folder = toy.write(tmp_path, [100], _misleading(100))
    reader = toy.supervision(folder, [100], 1e-9)

    def spread(batches: Iterable[Batch]) -> int:
        counts = [[text.count("x") for text in batch.texts] for batch in batches]
        return max(max(one) - min(one) for one in counts[:-1])

    assert spread(reader.train(0, 5, 0, encode)) <= 1
    mixed = toy.write(tmp_path / "mixed", [100], [f"t{i} " + "ox"[i % 2] * 9 for i in range(100)])
    reader = toy.supervision(mixed, [100], 1e-9)
    assert spread(reader.train(0, 5, 0)) == 9, "characters do not tell"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_brings_the_tokens_of_its_own_rows(tmp_path: Path, world: int) -> None:
    folder = toy.write(tmp_path, [40, 23], _misleading(63))
    reader = toy.supervision(folder, [40, 23], 0.2)
    for batches in (lambda one: one.train(1, 6, 0, encode), lambda one: one.held_out(6, encode)):
        whole = [sorted(batch.texts) for batch in batches(reader)]
        slices = [list(batches(one)) for one in workers(reader, world)]
        for batch in (batch for own in slices for batch in own):
            assert batch.encoded == encode(batch.texts, None)
        for number, texts in enumerate(whole):
            own = [
                t for one in slices for t, w in zip(one[number].texts, one[number].weights, strict=True) if w
            ]
            assert sorted(own) == texts


def test_pairs_are_tokenized_together(tmp_path: Path) -> None:
    pairs = ["x" * (i % 4) for i in range(30)]
    reader = toy.supervision(toy.write(tmp_path, [30], pairs=pairs), [30], 0.2)
    for batch in reader.train(0, 4, 0, encode):
        assert batch.encoded == encode(batch.texts, batch.pairs)


def test_only_what_is_due_is_tokenized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch does not wait for the whole corpus."""
    monkeypatch.setattr(data, "_SORTED_BATCHES", 2)
    reader = toy.supervision(toy.write(tmp_path, [100]), [100], 1e-9)
    seen: list[int] = []

    def counted(texts: list[str], pairs: list[str] | None) -> data.Encoded:
        seen.append(len(texts))
        return encode(texts, pairs)

    stream = reader.train(0, 5, 0, counted)
    next(stream)
    assert seen == [10]
    assert sum(1 for _ in stream) == reader.steps(5) - 1
    assert sum(seen) == reader.split.train_rows


@pytest.mark.parametrize("group", [1, 2, 64])
def test_left_out_batches_change_nothing_of_the_others(
    group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_BUFFER_ROWS", 12)
    monkeypatch.setattr(data, "_SORTED_BATCHES", group)
    parts = [9, 0, 7, 11, 4]
    reader = toy.supervision(toy.write(tmp_path, parts), parts)
    encoded: list[int] = []

    def encode(texts: list[str], pairs: list[str] | None) -> data.Encoded:
        encoded.append(len(texts))
        return {"input_ids": [[1] * len(text) for text in texts]}

    batches = ids(reader.train(1, 3, 5, encode))
    assert len(batches) == reader.steps(3)
    whole = sum(encoded)
    for skip in range(len(batches) + 1):
        encoded.clear()
        assert ids(reader.train(1, 3, 5, encode, skip)) == batches[skip:]
    assert sum(encoded) == 0 < whole, "what is left out is not tokenized"
