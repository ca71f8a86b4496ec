"""Shards, quarantine, fingerprints and reuse."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muki_ray.config import TextSource
from muki_ray.corpus import QUARANTINE, Corpus, normalise
from muki_ray.errors import CorpusError, StoreError
from muki_ray.store import Folder, RunFolder, fingerprint


def build(
    folder: Path,
    path: str | list[str],
    shard_rows: int = 4,
    *,
    limit: int | None = None,
    label: str | None = None,
    **options: object,
) -> Corpus:
    source = TextSource.model_validate({"path": path, **options})
    return normalise(source, RunFolder(str(folder / "run")), shard_rows=shard_rows, limit=limit, label=label)


def jsonl(file: Path, texts: list[Any]) -> str:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


def good(corpus: Corpus) -> list[tuple[object, ...]]:
    """All rows of all shards."""
    return [tuple(row.values()) for shard in range(corpus.shards) for row in corpus.read(shard).to_pylist()]


def bad(corpus: Corpus) -> dict[int, str]:
    """Row id to reason."""
    rows = corpus.folder.read_table(QUARANTINE).to_pylist()
    return {row["row_id"]: row["reason"] for row in rows}


# -- shards --------------------------------------------------------------------------------------------


def test_shards_are_full_but_the_last(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(10)]
    corpus = build(tmp_path, jsonl(tmp_path / "a.jsonl", texts))
    assert corpus.rows_per_part == (4, 4, 2)
    assert (corpus.shards, corpus.rows_in, corpus.rows_out, corpus.quarantined) == (3, 10, 10, 0)
    assert not corpus.pair
    assert good(corpus) == list(enumerate(texts))
    assert corpus.folder.names() == {"manifest.json", *(f"part-0000{i}.parquet" for i in range(3))}
    assert corpus.read(0).schema == pa.schema([("row_id", pa.int64()), ("text", pa.string())])


def test_shards_do_not_depend_on_batches_and_files(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(5000)]  # more than two batches
    one = build(tmp_path / "one", jsonl(tmp_path / "a.jsonl", texts), 1500)
    (tmp_path / "many").mkdir()
    for i in range(0, 5000, 700):
        jsonl(tmp_path / "many" / f"{i:04d}.jsonl", texts[i : i + 700])
    many = build(tmp_path / "two", str(tmp_path / "many"), 1500)
    assert one.rows_per_part == many.rows_per_part == (1500, 1500, 1500, 500)
    assert good(one) == good(many) == list(enumerate(texts))
    assert one.fingerprint == many.fingerprint
    assert one.folder.read_bytes("part-00001.parquet") == many.folder.read_bytes("part-00001.parquet")


def test_bad_rows_leave_shards_full_and_ids_in_place(tmp_path: Path) -> None:
    corpus = build(tmp_path, jsonl(tmp_path / "a.jsonl", [None, "b", "", "d", "e"]), 2)
    assert good(corpus) == [(1, "b"), (3, "d"), (4, "e")]
    assert corpus.rows_per_part == (2, 1)
    assert (corpus.rows_in, corpus.rows_out, corpus.quarantined) == (5, 3, 2)
    assert bad(corpus) == {0: "null text", 2: "empty text"}


def test_pairs_need_both_texts(tmp_path: Path) -> None:
    rows = {"q": ["a", "b", None, "d", None], "p": ["A", " ", "C", None, None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    corpus = build(tmp_path, str(tmp_path / "a.parquet"), text=["q", "p"])
    assert corpus.pair
    assert corpus.read(0).to_pylist() == [{"row_id": 0, "text": "a", "text_pair": "A"}]
    assert bad(corpus) == {1: "empty text_pair", 2: "null text", 3: "null text_pair", 4: "null text"}


def test_labels_are_kept_where_asked_for(tmp_path: Path) -> None:
    rows = {"text": ["a", "b", "c", "d"], "y": ["pos", None, "", "neg"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    corpus = build(tmp_path, str(tmp_path / "a.parquet"), label="y")
    assert good(corpus) == [(0, "a", "pos"), (3, "d", "neg")]
    assert corpus.read(0).column_names == ["row_id", "text", "label"]
    assert bad(corpus) == {1: "null label", 2: "empty label"}
    without = build(tmp_path, str(tmp_path / "a.parquet"))
    assert good(without) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_the_limit_counts_rows_good_and_bad_over_all_files(tmp_path: Path) -> None:
    paths = [jsonl(tmp_path / "a.jsonl", ["a", None]), jsonl(tmp_path / "b.jsonl", ["c", None, "e"])]
    corpus = build(tmp_path, paths, limit=4)
    assert good(corpus) == [(0, "a"), (2, "c")]
    assert list(bad(corpus)) == [1, 3]
    assert build(tmp_path, paths, limit=100).rows_in == 5
    assert build(tmp_path, paths, limit=2).rows_in == 2


def test_progress_is_told_batch_by_batch(tmp_path: Path) -> None:
    seen: list[int] = []
    paths = [jsonl(tmp_path / "a.jsonl", ["a", None]), jsonl(tmp_path / "b.jsonl", ["c"] * 3000)]
    run = RunFolder(str(tmp_path / "run"))
    normalise(TextSource(path=paths), run, shard_rows=1000, progress=seen.append)
    assert seen == [2, 2050, 3002]


# -- bad rows ------------------------------------------------------------------------------------------


def test_every_kind_of_bad_text(tmp_path: Path) -> None:
    raw = ["ok", None, "", " \t\u3000\n", b"caf\xe9", "a\0b", "\u200b ok"]
    texts = pa.array([t.encode() if isinstance(t, str) else t for t in raw], pa.binary())
    pq.write_table(pa.table({"text": texts.view(pa.string())}), tmp_path / "a.parquet")
    corpus = build(tmp_path, str(tmp_path / "a.parquet"))
    assert good(corpus) == [(0, "ok"), (6, "\u200b ok")]
    assert bad(corpus) == {
        1: "null text",
        2: "empty text",
        3: "empty text",
        4: "text is not UTF-8",
        5: "text has a NUL character",
    }


def test_rows_that_cannot_be_taken_apart_keep_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "a"}\n{bad\n{"text": "\\udc00"}\n{"text": "\\u0000"}\n{"text": "e"}\n'
    )
    (tmp_path / "b.csv").write_bytes(b'n,text\n1,f\n2\n3,"h"x\n4,\xff\n5,""\n6,k\n')
    (tmp_path / "c.txt").write_bytes(b"l\n\n\xff\no\n")
    corpus = build(tmp_path, [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt")])
    assert good(corpus) == [(0, "a"), (4, "e"), (5, "f"), (10, "k"), (11, "l"), (14, "o")]
    assert bad(corpus) == {
        1: "malformed JSON (jsonl: one object per line)",
        2: "text has a lone surrogate",
        3: "text has a NUL character",
        6: "wrong number of CSV fields",
        7: "malformed CSV",
        8: "text is not UTF-8",
        9: "empty text",
        12: "empty text",
        13: "text is not UTF-8",
    }
    sources = corpus.folder.read_table(QUARANTINE)["source"].to_pylist()
    assert sources == [str(tmp_path / name) for name in ["a.jsonl"] * 3 + ["b.csv"] * 4 + ["c.txt"] * 2]


def test_many_bad_rows(tmp_path: Path) -> None:
    rows = 150_000  # the quarantine is encoded in several pieces
    (tmp_path / "a.txt").write_text("\n" * rows + "good")
    corpus = build(tmp_path, str(tmp_path / "a.txt"))
    assert good(corpus) == [(rows, "good")]
    table = corpus.folder.read_table(QUARANTINE)
    assert table["row_id"].to_pylist() == list(range(rows))
    assert set(table["reason"].to_pylist()) == {"empty text"}
    assert table.schema == pa.schema(
        [("row_id", pa.int64()), ("source", pa.string()), ("reason", pa.string())]
    )
    assert len(corpus.folder.read_bytes(QUARANTINE)) < 8 * rows


def test_the_manifest_accounts_for_every_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["a", None, "", None, 5])
    corpus = build(tmp_path, path)
    manifest = corpus.folder.manifest()
    assert manifest is not None
    assert manifest["reasons"] == {"null text": 2, "empty text": 1, "text is no string": 1}
    assert (manifest["rows_in"], manifest["rows_out"], manifest["quarantined"]) == (5, 1, 4)
    assert manifest["source"] == [path]
    assert manifest["columns"] == {"text": "text"}
    assert manifest["fingerprint"] == corpus.fingerprint
    assert manifest["rows_per_part"] == [1]


def test_the_most_frequent_reasons_are_said(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["a", "", None, "", 5, "\0", " ", None, 6, "b"])
    for corpus in (build(tmp_path, path), build(tmp_path, path)):  # read, and found already read
        assert corpus.set_aside == (
            "8 of 10 rows set aside (empty text: 3, null text: 2, text is no string: 2, 1 other reason: 1), "
            f"see {corpus.folder.sub(QUARANTINE).location}"
        )
    assert build(tmp_path, jsonl(tmp_path / "good.jsonl", ["a"])).set_aside == ""


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(st.none(), st.text(st.characters(codec=None, exclude_categories=[]), max_size=8)),
        max_size=30,
    ),
    shard_rows=st.integers(1, 7),
)
def test_rows_in_are_rows_out_plus_quarantined(texts: list[str | None], shard_rows: int) -> None:
    def usable(text: str | None) -> bool:
        if text is None or not text.strip() or "\0" in text:
            return False
        return not any(0xD800 <= ord(c) <= 0xDFFF for c in text)

    expected = [(i, text) for i, text in enumerate(texts) if usable(text)]
    with tempfile.TemporaryDirectory() as folder:
        path = jsonl(Path(folder) / "a.jsonl", texts)
        if not expected:
            with pytest.raises(CorpusError):
                build(Path(folder), path, shard_rows)
            return
        corpus = build(Path(folder), path, shard_rows)
        assert good(corpus) == expected
        assert corpus.rows_in == len(texts) == corpus.rows_out + corpus.quarantined
        quarantined = set(bad(corpus)) if corpus.quarantined else set()
        assert quarantined == set(range(len(texts))) - {i for i, _ in expected}
        assert all(rows == shard_rows for rows in corpus.rows_per_part[:-1])


# -- errors --------------------------------------------------------------------------------------------


def test_a_corpus_without_rows_is_refused(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.csv"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.csv").write_text("text\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="no row in"):
        build(tmp_path, str(tmp_path))


def test_a_corpus_without_a_good_row_is_refused_with_the_reasons(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [None, "", None])
    with pytest.raises(CorpusError, match=r"no good row among 3 .*\(null text: 2, empty text: 1\)"):
        build(tmp_path, path)


@pytest.mark.parametrize(
    ("indent", "reason"), [(None, "JSON line is no object"), (1, "malformed JSON")], ids=["one line", "many"]
)
def test_a_json_array_is_told_the_form_of_json_lines(indent: int | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}], indent=indent))
    with pytest.raises(CorpusError, match=rf"{reason} \(jsonl: one object per line\): \d"):
        build(tmp_path, str(path), format="jsonl")


def test_a_failed_run_leaves_no_manifest_and_the_next_one_clears_its_parts(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", ["a"] * 10)
    second = tmp_path / "b.parquet"
    second.write_bytes(b"no parquet at all")
    stamp = second.stat()
    with pytest.raises(CorpusError, match=r"b\.parquet"):
        build(tmp_path, [first, str(second)])
    [folder] = (tmp_path / "run" / "corpus").iterdir()
    assert {file.name for file in folder.iterdir()} == {"part-00000.parquet", "part-00001.parquet"}
    (folder / "part-00077.parquet").write_bytes(b"left behind")

    pq.write_table(pa.table({"text": ["z"]}), second)
    data = second.read_bytes()
    os.utime(second, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(data) != stamp.st_size
    corpus = build(tmp_path, [first, str(second)])
    assert good(corpus) == [*((i, "a") for i in range(10)), (10, "z")]


def test_parts_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["a", "b"])
    corpus = build(tmp_path, path)
    folder = Path(corpus.folder.location)
    (folder / "manifest.json").unlink()
    (folder / "part-00001.parquet").write_bytes(b"left behind")
    (folder / QUARANTINE).write_bytes(b"left behind")
    assert build(tmp_path, path) == corpus
    assert corpus.folder.names() == {"part-00000.parquet", "manifest.json"}


# -- fingerprints and reuse ----------------------------------------------------------------------------


def test_the_fingerprint_by_hand(tmp_path: Path) -> None:
    corpus = build(tmp_path, jsonl(tmp_path / "a.jsonl", ["a", None, "é", "c"]), 2)
    parts = [
        fingerprint([1, 2, ["text"]]).encode(),
        (2).to_bytes(8, "little"),
        b"".join(n.to_bytes(8, "little") for n in (0, 2, 1, 2)),
        b"a\xc3\xa9",
        (1).to_bytes(8, "little"),
        b"".join(n.to_bytes(8, "little") for n in (3, 1)),
        b"c",
    ]
    assert corpus.fingerprint == hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def test_equal_content_has_one_fingerprint_whatever_the_format(tmp_path: Path) -> None:
    texts = ["a", "", 'b "c", d', "é"]
    pq.write_table(pa.table({"body": texts, "y": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "a.csv").write_text('n,text\n1,a\n2,\n3,"b ""c"", d"\n4,é\n')
    corpora = [
        build(tmp_path, str(tmp_path / "a.parquet"), text="body"),
        build(tmp_path, str(tmp_path / "a.parquet"), text="body", label="y"),
        build(tmp_path, jsonl(tmp_path / "a.jsonl", texts)),
        build(tmp_path, str(tmp_path / "a.txt")),
        build(tmp_path, str(tmp_path / "a.csv")),
    ]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert len({corpus.folder for corpus in corpora}) == 5


def test_other_content_has_another_fingerprint(tmp_path: Path) -> None:
    def of(texts: list[str | None], shard_rows: int = 4) -> str:
        path = jsonl(tmp_path / f"{fingerprint([texts])}.jsonl", texts)
        return build(tmp_path, path, shard_rows).fingerprint

    variants = [
        of(["ab", "c"]),
        of(["ab", "d"]),  # a byte
        of(["a", "bc"]),  # a boundary between rows
        of(["c", "ab"]),  # the order
        of([None, "ab", "c"]),  # row ids
        of(["ab", "c"], 1),  # sharding
        of(["ab", "c", "e"]),
    ]
    pq.write_table(pa.table({"q": ["ab", "c"], "p": ["x", "yz"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"q": ["ab", "c"], "p": ["xy", "z"]}), tmp_path / "2.parquet")
    variants += [build(tmp_path, str(tmp_path / f"{i}.parquet"), text=["q", "p"]).fingerprint for i in (1, 2)]
    assert len(set(variants)) == 9
    assert all(len(f) == 16 and int(f, 16) >= 0 for f in variants)


def test_a_second_call_reads_no_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = build(tmp_path, jsonl(path, ["a", None, "c"]))
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)  # unreadable now, but listed as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen: list[int] = []
    run = RunFolder(str(tmp_path / "run"))
    again = normalise(TextSource(path=[str(path)]), run, shard_rows=4, progress=seen.append)
    assert again == first
    assert good(again) == [(0, "a"), (2, "c")]
    assert seen == []


def test_a_changed_file_or_option_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = build(tmp_path, jsonl(path, ["a", "b"]))
    assert build(tmp_path, str(path), 1).folder != first.folder
    assert build(tmp_path, str(path), limit=1).folder != first.folder
    assert build(tmp_path, str(path), format="text").folder != first.folder
    stat = path.stat()
    jsonl(path, ["a", "c"])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed = build(tmp_path, str(path))
    assert changed.folder != first.folder
    assert good(changed) == [(0, "a"), (1, "c")]


def test_settings_of_data_sets_do_not_matter_to_files(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["a"])
    assert build(tmp_path, path, split="test") == build(tmp_path, path)


# -- reading -------------------------------------------------------------------------------------------


def test_reading_columns(tmp_path: Path) -> None:
    corpus = build(tmp_path, jsonl(tmp_path / "a.jsonl", ["a", "b"]))
    assert corpus.read(0, ["text"]).to_pydict() == {"text": ["a", "b"]}
    with pytest.raises(StoreError, match="'label'"):
        corpus.read(0, ["text", "label"])
    with pytest.raises(StoreError, match="no shard 1; it has 1"):
        corpus.read(1)
    with pytest.raises(StoreError, match="no shard -1"):
        corpus.read(-1)


def test_a_corpus_travels_to_another_process(tmp_path: Path) -> None:
    corpus = build(tmp_path, jsonl(tmp_path / "a.jsonl", ["a", "b"]))
    assert good(corpus) == [(0, "a"), (1, "b")]  # the folder has been opened by now
    data = pickle.dumps(corpus)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == corpus
    assert good(copy) == good(corpus)


def test_a_folder_that_disagrees_with_its_manifest_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ["a", "b", None, "d", "e"])
    corpus = build(tmp_path, path, 2)
    folder = Path(corpus.folder.location)
    (folder / "part-00000.parquet").write_bytes((folder / "part-00001.parquet").read_bytes())
    pq.write_table(pa.table({"row_id": [0], "text": ["a"]}), folder / "part-00001.parquet")
    with pytest.raises(StoreError, match="has 1 rows, the manifest says 2"):
        corpus.read(1)
    (folder / QUARANTINE).rename(folder / "away")
    with pytest.raises(StoreError, match="quarantine"):
        build(tmp_path, path, 2)
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(StoreError, match="missing"):
        corpus.read(1)
    with pytest.raises(StoreError, match="disagrees"):
        build(tmp_path, path, 2)
    (folder / "part-00000.parquet").unlink()
    Folder(str(folder)).write_json("manifest.json", {"rows_per_part": []})
    with pytest.raises(StoreError, match="fingerprint"):
        build(tmp_path, path, 2)
