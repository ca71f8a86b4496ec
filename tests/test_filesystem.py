"""Paths and URIs; S3 against a real S3 server on this machine."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from muki_ray.errors import ConfigError, StoreError
from muki_ray.filesystem import (
    absolute,
    copy_tree,
    exists,
    is_local,
    join,
    open_location,
    plain,
    redact,
    scheme,
)
from muki_ray.store import MANIFEST, Folder, RunFolder, part_name

# -- names -----------------------------------------------------------------------------------------------


def test_scheme() -> None:
    assert scheme("S3://bucket/x") == "s3"
    assert scheme("abfs+x://c/x") == "abfs+x"
    assert scheme("/a/b") == scheme("a/b") == scheme("C://x") == scheme("org/name") == ""


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute("runs/one") == str(tmp_path / "runs" / "one")
    assert absolute("~/x") == str(tmp_path / "home" / "x")
    assert absolute("/a/b") == "/a/b"
    assert absolute("s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize(
    ("location", "joined"),
    [
        ("/runs", "/runs/a/b"),
        ("/runs/", "/runs/a/b"),
        ("/", "/a/b"),
        ("runs", "runs/a/b"),
        ("s3://bucket", "s3://bucket/a/b"),
        ("s3://bucket/run/", "s3://bucket/run/a/b"),
        # options belong to the whole URI, so they stay at its end
        ("s3://bucket/run?region=eu", "s3://bucket/run/a/b?region=eu"),
        (
            "s3://bucket?endpoint_override=h:1&scheme=http",
            "s3://bucket/a/b?endpoint_override=h:1&scheme=http",
        ),
        # a question mark in a path is a letter like any other
        ("/what?", "/what?/a/b"),
    ],
)
def test_join(location: str, joined: str) -> None:
    assert join(location, "a", "b") == joined
    assert join(location, "/a/", "b/") == joined


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("s3://key:secret@bucket/run", "s3://bucket/run"),
        ("s3://key@bucket/run", "s3://bucket/run"),
        ("s3://key:sec@ret@bucket/run", "s3://bucket/run"),
        ("s3://key:sec/ret@bucket/run", "s3://bucket/run"),
        ("s3://key:se/cr/et@bucket", "s3://bucket"),
        ("https://host/data?token=secret", "https://host/data"),
        ("https://user:sec?ret@host/data", "https://host/data"),
        ("s3://bucket/run?access_key=key&secret_key=secret", "s3://bucket/run"),
        ("S3://key:secret@bucket/run", "S3://bucket/run"),
    ],
)
def test_redact_lets_no_credentials_through(location: str, shown: str) -> None:
    assert redact(location) == shown


@pytest.mark.parametrize(
    "location",
    [
        "/local/a@b?c",
        "file:///local/a@b",
        "s3://bucket/run",
        "hf://datasets/org/name@v1/x.parquet",
        "hdfs://host:9000/data@v1/x",
        "runs/one",
    ],
)
def test_redact_keeps_what_is_no_secret(location: str) -> None:
    assert redact(location) == location


# -- local -----------------------------------------------------------------------------------------------


def test_local_paths_and_file_uris_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with space #1?"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    locations = [str(folder), folder.name, folder.as_uri(), f"file://localhost{folder}", f"file://{folder}"]
    for location in locations:
        filesystem, path = open_location(location)
        assert is_local(filesystem)
        assert path == str(folder)
        assert exists(location)
        assert not exists(join(location, "none"))


def test_a_file_uri_with_a_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'file://runs/one' names the host 'runs'; a file URI has three"):
        open_location("file://runs/one")


@pytest.mark.parametrize("kind", ["nope", "s4", "abfss-typo"])
def test_unknown_scheme(kind: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"cannot open '{kind}://bucket/x'.*use a local path, s3://"
    ) as refusal:
        open_location(f"{kind}://key:secret@bucket/x?token=secret")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("location", ["s3:///run", "gs:///run"])
def test_a_missing_bucket_is_refused(location: str) -> None:
    with pytest.raises(ConfigError, match="there is no bucket"):
        open_location(location)


def test_errors_of_the_uri_parser_show_no_credentials() -> None:
    with pytest.raises(ConfigError, match="cannot open 's3://bucket/run'") as refusal:
        open_location("s3://key:hush/hush@bucket/run")
    assert "hush" not in str(refusal.value)


def test_copy_tree(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "deep" / "two").write_text("2")
    copy_tree(str(tmp_path / "a"), str(tmp_path / "b" / "c"))
    assert (tmp_path / "b" / "c" / "one").read_text() == "1"
    assert (tmp_path / "b" / "c" / "deep" / "two").read_text() == "2"


def test_other_schemes_go_through_fsspec() -> None:
    folder = Folder("memory://muki-test/run")
    folder.write_json("x.json", {"a": 1})
    assert folder.read_json("x.json") == {"a": 1}
    assert folder.names() == {"x.json"}
    assert not is_local(open_location("memory://muki-test")[0])


# -- S3 --------------------------------------------------------------------------------------------------


def test_a_run_folder_in_s3(s3_bucket: str) -> None:
    folder = RunFolder(f"s3://{s3_bucket}/run").corpus("abc")
    assert folder.location == f"s3://{s3_bucket}/run/corpus/abc"
    assert folder.names() == set()
    assert not folder.has("x")
    assert folder.manifest() is None
    table = pa.table({"row_id": [0, 1], "text": ["a", "b"]})
    folder.write_table(part_name(0), table)
    assert folder.has(part_name(0)) and not folder.has(part_name(1))
    assert folder.manifest() is None, "complete only with its manifest"
    with pytest.raises(StoreError, match="part-00001"):
        folder.finish({}, [2, 2])
    folder.finish({"rows": 2}, [2])
    assert folder.manifest() == {"rows": 2, "rows_per_part": [2]}
    assert folder.names() == {part_name(0), MANIFEST}
    assert folder.read_table(part_name(0)).equals(table)
    folder.remove([part_name(0), "never-there"])
    with pytest.raises(StoreError, match="disagrees with its manifest"):
        folder.manifest()


def test_a_slash_at_the_end_is_the_same_folder(s3_bucket: str) -> None:
    Folder(f"s3://{s3_bucket}/run/").write_bytes("x", b"1")
    assert Folder(f"s3://{s3_bucket}/run").read_bytes("x") == b"1"
    assert Folder(f"s3://{s3_bucket}/run").names() == {"x"}


def test_what_the_name_says_does_not_change_the_bytes(s3_bucket: str, tmp_path: Path) -> None:
    data = b"plain" * 100
    for location in (f"s3://{s3_bucket}/run", str(tmp_path)):
        Folder(location).write_bytes("report.gz", data)
        assert Folder(location).read_bytes("report.gz") == data
    assert open_location(f"s3://{s3_bucket}/run")[0].get_file_info(f"{s3_bucket}/run/report.gz").size == len(
        data
    )


def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    folder = Folder(f"s3://{s3_bucket}-none/run")
    assert not folder.has("x")
    assert folder.names() == set()
    assert not exists(folder.location)


def test_copy_tree_to_and_from_s3(s3_bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "deep" / "two").write_text("2")
    copy_tree(str(tmp_path / "a"), f"s3://{s3_bucket}/copy")
    assert exists(f"s3://{s3_bucket}/copy/deep/two")
    copy_tree(f"s3://{s3_bucket}/copy", str(tmp_path / "back"))
    assert (tmp_path / "back" / "one").read_text() == "1"
    assert (tmp_path / "back" / "deep" / "two").read_text() == "2"


def test_an_endpoint_in_the_uri_wins_over_the_environment(
    s3_bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(f"s3://{s3_bucket}/run").write_bytes("x", b"1")
    host = s3_server.removeprefix("http://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nothing listens there
    folder = Folder(f"s3://{s3_bucket}?scheme=http&endpoint_override={host}&region=us-east-1").sub("run")
    assert folder.read_bytes("x") == b"1"


def test_credentials_in_the_uri_keep_the_endpoint_of_the_environment(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    folder = Folder(f"s3://key:secret@{s3_bucket}/run")
    folder.write_bytes("x", b"1")
    assert folder.names() == {"x"}


def test_the_s3_endpoint_wins_over_the_general_one(
    s3_bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    assert exists(f"s3://{s3_bucket}")


def test_the_region_of_the_uri_counts_beside_the_endpoint_of_the_environment(s3_bucket: str) -> None:
    filesystem, path = open_location(f"s3://{s3_bucket}/run?region=eu-west-3")
    client = plain(filesystem)
    assert isinstance(client, fs.S3FileSystem)
    assert (client.region, path) == ("eu-west-3", f"{s3_bucket}/run")


def test_an_endpoint_without_a_scheme_is_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # taken as it is, it would mean the public service
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL is 'localhost:9000', not of the form http://"):
        open_location(f"s3://{s3_bucket}/run")
