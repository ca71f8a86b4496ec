"""The run folder: fingerprints, whole files, manifests, plain Parquet."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.errors import StoreError
from muki_ray.store import MANIFEST, Folder, RunFolder, fingerprint, part_name

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "corpus" / "abc"))


def on_disk(folder: Folder) -> list[str]:
    """All that lies there, hidden files too."""
    return sorted(path.name for path in Path(folder.location).iterdir())


def table_of(rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "row_id": pa.array(range(rows), pa.int64()),
            "text": [f"text {i % 7}" for i in range(rows)],
            "probs": pa.array(list(rng.random((rows, 3), dtype=np.float32)), pa.list_(pa.float32())),
            "weight": pa.array(rng.random(rows)),
        }
    )


# -- fingerprints ----------------------------------------------------------------------------------------


def test_fingerprints_do_not_change_between_versions() -> None:
    # the first 16 hex digits of sha256 of {"model":"m","samples":16}; stored runs depend on it
    assert fingerprint({"samples": 16, "model": "m"}) == "387d3167f9d2d759"
    assert fingerprint(["z\u00fcrich", None, 0.2, True]) == "cf6f6d90c6033313"


def test_fingerprint_does_not_depend_on_the_order_of_keys_at_any_depth() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": None}}
    other = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert fingerprint(one) == fingerprint(other)


def test_fingerprint_has_the_length_asked_for() -> None:
    assert len(fingerprint({})) == 16
    assert fingerprint({}, 40).startswith(fingerprint({}))
    assert len(fingerprint({}, 40)) == 40


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": "1"}),
        ({"a": None}, {}),
        ([1, 2], [2, 1]),
        (["ab", "c"], ["a", "bc"]),
        ({"tau": 0.2}, {"tau": 0.2000000001}),
        (True, 1),
    ],
)
def test_fingerprint_differs_with_the_content(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


def test_what_is_not_json_has_no_fingerprint() -> None:
    for content in (float("nan"), {"a": object()}, {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            fingerprint(content)


@given(JSON, JSON)
def test_equal_fingerprints_mean_equal_content(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (repr_sorted(one) == repr_sorted(other))


def repr_sorted(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_sorted(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_sorted, value)) + "]"
    return repr(value)


# -- whole files -----------------------------------------------------------------------------------------


def test_bytes_come_back_and_replace_what_was_there(folder: Folder, tmp_path: Path) -> None:
    assert not folder.has("x") and folder.names() == set()
    folder.write_bytes("x", b"one")
    folder.write_bytes("x", b"two")
    assert folder.read_bytes("x") == b"two"
    assert folder.has("x") and folder.names() == {"x"}
    assert on_disk(folder) == ["x"]
    assert folder.path("x") == str(tmp_path / "corpus" / "abc" / "x")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing_behind(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        if step == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            folder.write_bytes("x", b"new")
    assert on_disk(folder) == []


def test_a_write_that_fails_keeps_the_file_that_was_there(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_bytes("x", b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            folder.write_bytes("x", b"new")
    assert folder.read_bytes("x") == b"old"
    assert on_disk(folder) == ["x"]


def test_names_hide_temporary_files_and_folders(folder: Folder, tmp_path: Path) -> None:
    folder.write_bytes("whole", b"")
    (tmp_path / "corpus" / "abc" / ".whole.123.tmp").write_bytes(b"half")
    (tmp_path / "corpus" / "abc" / "below").mkdir()
    assert folder.names() == {"whole"}
    assert not folder.has("below"), "a folder is not a file"


def test_remove_passes_over_what_is_not_there(folder: Folder) -> None:
    folder.write_bytes("a", b"")
    folder.write_bytes("b", b"")
    folder.remove(["a", "never-there"])
    assert folder.names() == {"b"}


def test_json_round_trip_and_same_bytes_for_the_same_content(folder: Folder) -> None:
    content = {"b": "z\u00fcrich", "a": [1, None, 0.5]}
    folder.write_json("one.json", content)
    folder.write_json("two.json", dict(reversed(content.items())))
    assert folder.read_json("one.json") == content
    assert folder.read_bytes("one.json") == folder.read_bytes("two.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("nan.json", float("nan"))
    assert not folder.has("nan.json")


@pytest.mark.parametrize("data", [b"{", b"", b"\xff\xfe\xfa"])
def test_damaged_json_is_refused(folder: Folder, data: bytes) -> None:
    folder.write_bytes("x.json", data)
    with pytest.raises(StoreError, match=r"x\.json is not JSON .*; delete it and run again$"):
        folder.read_json("x.json")


# -- Parquet ---------------------------------------------------------------------------------------------


def test_table_round_trip_and_choice_of_columns(folder: Folder) -> None:
    folder.write_table("t.parquet", table_of(10))
    assert folder.read_table("t.parquet").equals(table_of(10))
    assert folder.read_table("t.parquet", ["weight", "row_id"]).column_names == ["weight", "row_id"]


def test_equal_tables_give_equal_bytes(folder: Folder) -> None:
    table = table_of(20_000)
    variants = {
        "whole": table,
        "chunks": pa.concat_tables([table.slice(0, 7), table.slice(7, 9_000), table.slice(9_007)]),
        "slice": pa.concat_tables([table.slice(0, 5), table]).combine_chunks().slice(5),
        "metadata": table.replace_schema_metadata({"pandas": "{}", "note": "x"}),
    }
    for name, variant in variants.items():
        assert variant.equals(table), name
        folder.write_table(name, variant)
        assert folder.read_bytes(name) == folder.read_bytes("whole"), name


def test_parquet_is_plain_for_other_readers(folder: Folder, tmp_path: Path) -> None:
    # a table that came from pandas carries its metadata; the file must not
    table = pa.Table.from_pandas(pd.DataFrame({"row_id": [0, 1], "text": ["a", "b"]}, index=[5, 6]))
    assert b"pandas" in table.schema.metadata
    probs = pa.array([[0.25, 0.75], [1.0, 0.0]], pa.list_(pa.float32()))
    folder.write_table("t.parquet", table.drop_columns("__index_level_0__").append_column("probs", probs))
    path = tmp_path / "corpus" / "abc" / "t.parquet"
    schema = pq.read_schema(path)
    assert schema.metadata is None
    assert schema.field("row_id").type == pa.int64()
    assert schema.field("text").type == pa.string()
    assert schema.field("probs").type == pa.list_(pa.field("element", pa.float32()))
    frame = pd.read_parquet(path)
    assert list(frame.columns) == ["row_id", "text", "probs"]
    assert list(frame.index) == [0, 1]
    assert frame["row_id"].dtype == np.int64
    assert [row.tolist() for row in frame["probs"]] == [[0.25, 0.75], [1.0, 0.0]]


def test_damaged_parquet_is_refused(folder: Folder) -> None:
    folder.write_table("t.parquet", table_of(1_000))
    data = folder.read_bytes("t.parquet")
    middle = len(data) // 2
    damaged = {
        "short.parquet": data[:middle],
        "empty.parquet": b"",
        "page.parquet": data[: middle - 500] + b"\xff" * 1000 + data[middle + 500 :],
    }
    for name, content in damaged.items():
        folder.write_bytes(name, content)
        with pytest.raises(StoreError, match=rf"{name} is not readable Parquet .*delete it and run again$"):
            folder.read_table(name)


def test_a_column_that_is_not_there_is_refused(folder: Folder) -> None:
    folder.write_table("t.parquet", table_of(2))
    with pytest.raises(StoreError, match="nope"):
        folder.read_table("t.parquet", ["row_id", "nope"])


# -- manifests -------------------------------------------------------------------------------------------


def write_parts(folder: Folder, *shards: int) -> None:
    for shard in shards:
        folder.write_table(part_name(shard), table_of(2))


def test_part_names_sort_like_their_numbers() -> None:
    assert part_name(7) == "part-00007.parquet"
    assert sorted(map(part_name, [10, 9, 100, 0])) == [part_name(i) for i in (0, 9, 10, 100)]


def test_a_folder_is_complete_with_its_manifest(folder: Folder) -> None:
    assert folder.manifest() is None
    write_parts(folder, 0, 1)
    folder.write_table("quarantine.parquet", table_of(1))
    assert folder.manifest() is None
    folder.finish({"rows": 4}, [2, 2])
    assert folder.manifest() == {"rows": 4, "rows_per_part": [2, 2]}


def test_finish_refuses_missing_parts(folder: Folder) -> None:
    write_parts(folder, 0, 2)
    with pytest.raises(
        StoreError, match=r"cannot be finished: of 4 parts 2 are missing .*part-00001"
    ) as refusal:
        folder.finish({}, [2, 2, 2, 2])
    assert "\n" not in str(refusal.value)
    assert not folder.has(MANIFEST)


def test_manifest_refuses_missing_parts(folder: Folder) -> None:
    write_parts(folder, 0, 1, 2)
    folder.finish({}, [2, 2, 2])
    folder.remove([part_name(1)])
    with pytest.raises(
        StoreError, match=r"disagrees with its manifest: of 3 parts 1 are missing .*part-00001"
    ):
        folder.manifest()


def test_parts_that_the_manifest_does_not_know_are_refused(folder: Folder) -> None:
    write_parts(folder, 0, 1)
    with pytest.raises(StoreError, match=r"cannot be finished: of 1 parts 1 are too many .*part-00001"):
        folder.finish({}, [2])
    folder.finish({}, [2, 2])
    write_parts(folder, 2)
    with pytest.raises(StoreError, match=r"disagrees with its manifest: .*too many .*part-00002.*delete the"):
        folder.manifest()


@pytest.mark.parametrize(
    "data", [b"not json", b"[]", b"null", b"{}", b'{"rows_per_part": 3}', b'{"rows_per_part": [-1]}']
)
def test_a_damaged_manifest_is_refused(folder: Folder, data: bytes) -> None:
    folder.write_bytes(MANIFEST, data)
    with pytest.raises(
        StoreError, match=r"manifest\.json (is not JSON|has no list rows_per_part).*run again$"
    ):
        folder.manifest()


def test_a_folder_without_rows_can_be_complete(folder: Folder) -> None:
    folder.finish({}, [])
    assert folder.manifest() == {"rows_per_part": []}


def test_messages_show_no_credentials() -> None:
    folder = Folder("memory://key:hush@store-test/run")
    folder.write_bytes(MANIFEST, b"{}")
    with pytest.raises(StoreError) as refusal:
        folder.manifest()
    assert "hush" not in str(refusal.value)


# -- the layout ------------------------------------------------------------------------------------------


def test_a_folder_travels_to_another_process_open_or_not(folder: Folder) -> None:
    folder.write_bytes("x", b"1")  # opens it; the open filesystem must stay behind
    copy = pickle.loads(pickle.dumps(folder))
    assert copy == folder and hash(copy) == hash(folder)
    assert copy.read_bytes("x") == b"1"
    assert len(pickle.dumps(folder)) == len(pickle.dumps(Folder(folder.location)))


def test_layout_of_a_run() -> None:
    run = RunFolder("/runs/one/")
    assert run.root.path("config.yaml") == "/runs/one/config.yaml"
    assert run.corpus("a").path(part_name(0)) == "/runs/one/corpus/a/part-00000.parquet"
    assert run.evidence("b").location == "/runs/one/evidence/b"
    assert run.supervision("c").location == "/runs/one/supervision/c"
    assert run.checkpoints == "/runs/one/checkpoints"
    assert run.student.location == "/runs/one/student"
    assert run.report.location == "/runs/one/report"
    assert RunFolder("s3://bucket/run").report.location == "s3://bucket/run/report"
