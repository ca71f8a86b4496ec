"""Finding files, and reading every format as raw rows."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from muki_ray.config import TextSource
from muki_ray.corpus.huggingface import rows_of
from muki_ray.corpus.lines import BATCH_BYTES
from muki_ray.corpus.rows import BATCH_ROWS, roles
from muki_ray.corpus.sources import find, format_of, read
from muki_ray.errors import CorpusError

TEXTS = ["first", 'two, with "quotes"', "trois é 三", "  kept as it is  "]


def rows_from(path: str | list[str], label: str | None = None, **options: Any) -> list[tuple[object, ...]]:
    """Every row as (value per role..., ) decoded, or (reason,) where it could not be taken apart."""
    source = TextSource.model_validate({"path": path, **options})
    rows: list[tuple[object, ...]] = []
    for item in find(source):
        for batch in read(item, roles(source.text, label)):
            columns = [array.to_pylist() for array in batch.columns.values()]
            for index, values in enumerate(zip(*columns, strict=True)):
                decoded = tuple(v.decode("utf-8", "replace") if v is not None else None for v in values)
                rows.append((batch.faults[index],) if index in batch.faults else decoded)
    return rows


def texts_from(path: str | list[str], **options: Any) -> list[object]:
    return [row[0] for row in rows_from(path, **options)]


def refused(path: str | list[str], label: str | None = None, **options: Any) -> str:
    """The one line that a source is refused with."""
    with pytest.raises(CorpusError) as caught:
        rows_from(path, label, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_formats(folder: Path, texts: list[str]) -> dict[str, Path]:
    """The same texts in every file format."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"other": range(len(texts)), "text": texts})
    pq.write_table(table, folder / "a.parquet")
    lines = "".join(json.dumps({"text": t, "other": 1}) + "\n" for t in texts)
    (folder / "a.jsonl").write_text(lines)
    quoted = [t.replace('"', '""') for t in texts]
    (folder / "a.csv").write_text("other,text\n" + "".join(f'1,"{t}"\n' for t in quoted))
    (folder / "a.tsv").write_text("text\tother\n" + "".join(f'"{t}"\t1\n' for t in quoted))
    (folder / "a.txt").write_text("\n".join(texts) + "\n")
    return {name: folder / f"a.{name}" for name in ("parquet", "jsonl", "csv", "tsv", "txt")}


# -- formats -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "txt"])
@pytest.mark.parametrize("packing", ["", ".gz", ".bz2", ".zst"])
def test_every_format_gives_the_same_texts(tmp_path: Path, kind: str, packing: str) -> None:
    file = write_formats(tmp_path, TEXTS)[kind]
    data = file.read_bytes()
    if packing == ".gz":
        data = gzip.compress(data)
    elif packing == ".bz2":
        data = bz2.compress(data)
    elif packing == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    file = file.with_name(file.name + packing)
    file.write_bytes(data)
    assert texts_from(str(file)) == TEXTS


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.ndjson", "jsonl"),
        ("a.json-lines", "jsonl"),
        ("A.JSONL.GZ", "jsonl"),
        ("x/a.b.tsv.zst", "tsv"),
        ("a.txt.bz2", "text"),
        ("a.json", None),
        ("a.gz", None),
        ("csv", None),
    ],
)
def test_format_by_name(name: str, kind: str | None) -> None:
    assert format_of(name) == kind


def test_the_format_setting_wins_over_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "x"}\n')
    assert texts_from(str(tmp_path / "a.json"), format="jsonl") == ["x"]
    assert texts_from(str(tmp_path / "a.json"), format="text") == ['{"text": "x"}']


def test_plain_text_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n two\x0bthree\nlast")
    assert texts_from(str(tmp_path / "a.txt")) == ["one", "", " two\x0bthree", "last"]


def test_jsonl_says_what_is_wrong_with_a_line(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "bom"}',
        b"{bad",
        b"[1]",
        b"",
        b'{"other": 1}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": "no newline"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert texts_from(str(tmp_path / "a.jsonl")) == [
        "bom",
        "malformed JSON (jsonl: one object per line)",
        "JSON line is no object (jsonl: one object per line)",
        "blank JSON line",
        "no key for text",
        "text is no string",
        None,
        "text has a lone surrogate",
        "JSON line is not UTF-8",
        "malformed JSON (jsonl: one object per line)",
        "no newline",
    ]


def test_csv_quotes_newlines_blank_lines_and_field_counts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfid,text\r\n1,"a\nb"\r\n\r\n2,plain,extra\r\n3\r\n4,"x"y\r\n5,caf\xe9\r\n6,NA\r\n7,\r\n8,"open\r\n9,in'
    )
    assert texts_from(str(tmp_path / "a.csv")) == [
        "a\nb",
        "wrong number of CSV fields",
        "wrong number of CSV fields",
        "malformed CSV",
        "caf�",
        "NA",
        "",
        "malformed CSV",
    ]


def test_a_csv_field_may_be_longer_than_the_default_of_the_csv_module(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert texts_from(str(tmp_path / "a.csv")) == ["x" * 300_000]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
)
def test_parquet_text_types(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(
        pa.table({"text": pa.array(["a", None, "b"], pa.string()).cast(kind)}), tmp_path / "a.parquet"
    )
    assert texts_from(str(tmp_path / "a.parquet")) == ["a", None, "b"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, "int64"), (1.5, "double"), (True, "bool"), (["a"], "list<"), ({"a": "b"}, "struct<a: string>")],
)
def test_parquet_columns_of_other_types_are_refused_by_name(tmp_path: Path, value: object, kind: str) -> None:
    pq.write_table(pa.table({"text": [value]}), tmp_path / "a.parquet")
    assert f"column 'text' of {tmp_path}/a.parquet is {kind}" in refused(str(tmp_path / "a.parquet"))


def test_labels_are_strings_or_integers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "y": [7, None], "z": [0.5, 1.0]}), tmp_path / "a.parquet")
    assert rows_from(str(tmp_path / "a.parquet"), "y") == [("a", "7"), ("b", None)]
    assert "'z'" in refused(str(tmp_path / "a.parquet"), "z")
    lines = [
        {"text": "a", "y": 7},
        {"text": "b", "y": "pos"},
        {"text": "c", "y": True},
        {"text": "d", "y": 1.5},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert rows_from(str(tmp_path / "a.jsonl"), "y") == [
        ("a", "7"), ("b", "pos"), ("label is no string",), ("label is no string",),
    ]  # fmt: skip


def test_class_names_stored_in_parquet_are_used(tmp_path: Path) -> None:
    labelled().to_parquet(str(tmp_path / "a.parquet"))
    assert rows_from(str(tmp_path / "a.parquet"), "y") == [
        ("a", "pos"),
        ("b", "neg"),
        ("c", None),
        ("d", None),
    ]


def test_batches_are_bounded_by_rows_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("x\n" * (BATCH_ROWS + 1))
    (tmp_path / "bytes.txt").write_text(("x" * (BATCH_BYTES // 2) + "\n") * 3)
    wanted = roles(["text"], None)
    sizes = {
        item.name.rsplit("/", 1)[1]: [len(batch) for batch in read(item, wanted)]
        for item in find(TextSource(path=[str(tmp_path)]))
    }
    assert sizes == {"rows.txt": [BATCH_ROWS, 1], "bytes.txt": [2, 1]}


def test_a_file_is_read_no_further_than_asked(tmp_path: Path) -> None:
    packed = gzip.compress(b"line\n" * 2_000_000)
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    [item] = find(TextSource(path=[str(tmp_path / "a.txt.gz")]))
    batches = read(item, roles(["text"], None))
    assert len(next(batches)) == BATCH_ROWS  # the damage lies behind
    with pytest.raises(CorpusError, match=r"a\.txt\.gz"):
        list(batches)


# -- columns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "txt"])
def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path, kind: str) -> None:
    message = refused(str(write_formats(tmp_path, TEXTS)[kind]), text="body")
    assert "no column 'body'" in message
    assert "'text'" in message


def test_a_missing_label_or_second_text_is_named(tmp_path: Path) -> None:
    files = write_formats(tmp_path, TEXTS)
    for kind in ("parquet", "jsonl", "csv"):
        assert "set label:" in refused(str(files[kind]), "y")
        assert "no column 'second'" in refused(str(files[kind]), text=["text", "second"])


def test_a_column_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,text\na,b\n")
    assert "more than one column 'text'" in refused(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_pairs(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"q": ["a"], "p": ["b"]}), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text('{"q": "a", "p": "b"}')
    (tmp_path / "p.csv").write_text("q,p\na,b")
    assert rows_from(str(tmp_path / f"p.{kind}"), text=["p", "q"]) == [("b", "a")]


# -- damaged files -------------------------------------------------------------------------------------


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is none PAR1")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(os.urandom(1000))[:-9])
    (tmp_path / "c.jsonl.gz").write_bytes(b'{"text": "not packed"}')
    for name in ("a.parquet", "b.txt.gz", "c.jsonl.gz"):
        assert name in refused(str(tmp_path / name))


def test_a_parquet_file_with_damaged_pages_is_named(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {i}" for i in range(5000)]}), sink, compression="zstd")
    data = bytearray(sink.getvalue())
    data[100:200] = bytes(100)
    (tmp_path / "a.parquet").write_bytes(data)
    assert "a.parquet" in refused(str(tmp_path / "a.parquet"))


def test_a_csv_without_readable_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"open\n1,2\n')
    assert "header" in refused(str(tmp_path / "a.csv"))


# -- finding -------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.txt",
        "sub/c.txt",
        "sub/deep/d.txt",
        "_x.txt",
        ".h.txt",
        "_tmp/e.txt",
        "README.md",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
    return tmp_path


def test_a_folder_means_all_visible_known_files_below_sorted(tree: Path) -> None:
    assert texts_from(str(tree)) == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert texts_from(f"{tree}/sub/") == ["sub/c.txt", "sub/deep/d.txt"]
    assert texts_from(f"file://{tree}/sub") == ["sub/c.txt", "sub/deep/d.txt"]


def test_a_folder_with_a_format_means_files_of_that_format(tree: Path) -> None:
    (tree / "a.jsonl").write_text('{"text": "json"}')
    assert texts_from(str(tree), format="jsonl") == ["json"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("*/*.txt", ["sub/c.txt"]),
        ("s*/**", ["sub/c.txt", "sub/deep/d.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[b-z].txt", ["b.txt"]),
        ("sub/../*.txt", ["a.txt", "b.txt"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert texts_from(f"{tree}/{pattern}") == expected


def test_relative_paths_and_globs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert texts_from(["sub/*.txt", "./a.txt"]) == ["sub/c.txt", "a.txt"]
    assert texts_from("**/d.txt") == ["sub/deep/d.txt"]


def test_entries_keep_their_order_and_hidden_files_can_be_named(tree: Path) -> None:
    paths = [f"{tree}/sub/deep", f"{tree}/b.txt", f"{tree}/_x.txt", f"{tree}/a*"]
    assert texts_from(paths) == ["sub/deep/d.txt", "b.txt", "_x.txt", "a.txt"]


def test_a_name_with_glob_characters_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    (tmp_path / "a1.txt").write_text("one")
    assert texts_from(str(tmp_path / "a[1].txt")) == ["brackets"]


def test_the_same_file_twice_is_refused(tree: Path) -> None:
    assert "b.txt" in refused([str(tree), f"{tree}/b.txt"])
    assert "twice" in refused([f"{tree}/a.txt", f"{tree}/sub/../a.txt"])


def test_what_is_not_there_is_refused(tree: Path) -> None:
    assert "nothing at" in refused(f"{tree}/none.txt")
    assert "matches no file" in refused(f"{tree}/*.csv")
    assert "matches no file" in refused(f"{tree}/nowhere/*.csv")
    assert "matches no file" in refused(f"{tree}/_*.txt")
    (tree / "empty").mkdir()
    assert "no file of a known suffix" in refused(f"{tree}/empty")
    assert "(csv)" in refused(f"{tree}/sub", format="csv")


def test_unknown_suffixes_are_refused(tree: Path) -> None:
    assert "README.md" in refused(f"{tree}/README.md")
    assert "README.md" in refused(f"{tree}/*")
    assert texts_from(f"{tree}/*.md", format="text") == ["README.md"]
    assert "set format: to one of parquet, jsonl, csv, tsv, text" in refused(f"{tree}/README.md")


def test_a_malformed_glob_is_refused(tree: Path) -> None:
    assert "malformed" in refused(f"{tree}/**.txt")
    assert "bucket" in refused("s3://*/a.txt")


@pytest.fixture
def memory() -> Iterator[str]:
    """A file system that is not local."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe(
        {
            "/box/one/a.jsonl": b'{"text": "a"}\n',
            "/box/one/_SUCCESS": b"",
            "/box/two/b.txt.gz": gzip.compress(b"b"),
        }
    )
    pq.write_table(pa.table({"text": ["p"]}), "/box/two/c.parquet", filesystem=filesystem)
    yield "memory://box"
    filesystem.rm("/box", recursive=True)


def test_other_file_systems(memory: str) -> None:
    assert texts_from(memory) == ["a", "b", "p"]
    assert texts_from(f"{memory}/one/a.jsonl") == ["a"]
    assert texts_from(f"{memory}/*/*.parquet") == ["p"]
    assert texts_from(f"{memory}/**/*.txt*") == ["b"]
    assert "nothing at" in refused(f"{memory}/three")
    assert "twice" in refused([memory, f"{memory}/one/a.jsonl"])


def test_the_state_of_a_file_follows_its_content(memory: str, tmp_path: Path) -> None:
    def state(path: str) -> list[list[object]]:
        return [item.state for item in find(TextSource(path=[path]))]

    before = state(memory)
    assert state(memory) == before
    fsspec.filesystem("memory").pipe("/box/one/a.jsonl", b'{"text": "z"}\n')
    after = state(memory)
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    file = tmp_path / "a.txt"
    file.write_text("a")
    local = state(str(file))
    assert local == [[str(file), 1, file.stat().st_mtime_ns]]


# -- Hugging Face data sets ----------------------------------------------------------------------------


def labelled() -> datasets.Dataset:
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "y": datasets.ClassLabel(names=["neg", "pos"]),
            "n": datasets.Value("int32"),
        }
    )
    rows = {"text": ["a", "b", "c", "d"], "y": [1, 0, -1, None], "n": [1, 2, 3, 4]}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    labelled().save_to_disk(str(folder / "one"))
    parts = {"train": labelled().select([0, 1]), "odd ones": labelled().select([2])}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "several"))
    return folder


@pytest.mark.parametrize("kind", ["auto", "datasets"])
def test_saved_data_sets(saved: Path, kind: str) -> None:
    assert texts_from(str(saved / "one"), format=kind) == ["a", "b", "c", "d"]
    assert texts_from(str(saved / "one"), format=kind, split="whatever") == ["a", "b", "c", "d"]
    assert texts_from(str(saved / "several"), format=kind) == ["a", "b"]
    assert texts_from(str(saved / "several"), format=kind, split="odd ones") == ["c"]


def test_class_labels_become_names(saved: Path) -> None:
    assert rows_from(str(saved / "one"), "y") == [("a", "pos"), ("b", "neg"), ("c", None), ("d", None)]
    assert rows_from(str(saved / "one"), "n")[0] == ("a", "1")


def test_saved_data_sets_that_do_not_fit(saved: Path) -> None:
    message = refused(str(saved / "several"), split="test")
    assert "'test'" in message
    assert "'train', 'odd ones'" in message
    assert "no column 'body'" in refused(str(saved / "one"), text="body")
    assert "int32" in refused(str(saved / "one"), text="n")


def test_a_damaged_saved_data_set_is_named(tmp_path: Path) -> None:
    labelled().save_to_disk(str(tmp_path / "one"))
    [arrow] = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(b"no arrow")
    assert str(tmp_path / "one") in refused(str(tmp_path / "one"))


def test_format_datasets_needs_a_data_set(tree: Path) -> None:
    assert "is a file" in refused(f"{tree}/a.txt", format="datasets")
    assert "no saved data set" in refused(str(tree), format="datasets")
    assert "is a glob" in refused(f"{tree}/*", format="datasets")
    assert "nothing at" in refused(f"{tree}/none", format="datasets")


def test_a_hub_id_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("nobody/no-such-data-set", format="datasets")
    assert "'nobody/no-such-data-set'" in message
    assert "nothing at 'nobody/no-such-data-set'" in refused("nobody/no-such-data-set")


def test_streams_are_read_as_data_sets_are() -> None:
    stream = labelled().to_iterable_dataset()
    [batch] = rows_of(stream, roles(["text"], "y"), "stream")
    assert batch.columns["text"].to_pylist() == [b"a", b"b", b"c", b"d"]
    assert batch.columns["label"].to_pylist() == [b"pos", b"neg", None, None]
    with pytest.raises(CorpusError, match="no column 'body'"):
        list(rows_of(stream, roles(["body"], None), "stream"))


def test_a_stream_that_does_not_know_its_columns_is_checked_by_batch() -> None:
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a"}, {"text": "b"}]))
    assert stream.column_names is None
    [batch] = rows_of(stream, roles(["text"], None), "stream")
    assert batch.columns["text"].to_pylist() == [b"a", b"b"]
    with pytest.raises(CorpusError, match="no column 'body'"):
        list(rows_of(stream, roles(["body"], None), "stream"))


def test_a_stream_that_breaks_is_one_line() -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise RuntimeError("line\nlost")

    stream = datasets.IterableDataset.from_generator(broken)
    with pytest.raises(CorpusError, match="cannot read stream: line lost"):
        list(rows_of(stream, roles(["text"], None), "stream"))
