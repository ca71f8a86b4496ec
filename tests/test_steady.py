"""Filesystems that try again, against an S3 server that fails and files that do."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from muki_ray import retrying
from muki_ray.errors import StorageError
from muki_ray.filesystem import copy_file, copy_tree, open_location
from muki_ray.steady import Steady
from muki_ray.store import Folder, part_name
from tests.flaky import Fault, FlakyS3, flaky_s3

DATA = bytes(range(256)) * 5000  # 1.28 MB


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyS3]:
    with flaky_s3() as app:
        yield app


@pytest.fixture
def bucket(server: FlakyS3, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh bucket behind the flaky door, and no time to wait."""
    monkeypatch.setattr(retrying, "PAUSES_S", (0.0,) * 5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.address}")
    server.failing(None, 0)
    return f"s3://{s3_bucket}"


TABLE = pa.table({"row_id": [0, 1], "text": ["a", "b"]})
OPERATIONS: dict[str, tuple[str, Callable[[Folder], Any], Any]] = {
    "write": ("PUT", lambda folder: folder.write_bytes("new", DATA), None),
    "read": ("GET", lambda folder: folder.read_bytes("old"), DATA),
    "columns": ("GET", lambda folder: folder.read_table("t", ["text"]), TABLE.select(["text"])),
    "has": ("HEAD", lambda folder: folder.has("old"), True),
    "names": ("GET", lambda folder: folder.names(), {"old", "t"}),
    "remove": ("DELETE", lambda folder: folder.remove(["old"]), None),
}


@pytest.mark.parametrize(
    ("name", "fault"), [*((name, 429) for name in OPERATIONS), ("write", "lost"), ("remove", "lost")]
)
def test_every_operation_outlasts_a_failing_server(
    server: FlakyS3, bucket: str, name: str, fault: Fault
) -> None:
    folder = Folder(f"{bucket}/run")
    folder.write_bytes("old", DATA)
    folder.write_table("t", TABLE)
    method, operation, expected = OPERATIONS[name]
    server.failing(fault, 4, method)  # more than the S3 client's own three tries
    assert operation(folder) == expected
    assert server.failed >= 3, "more often than the client tries; a second try finds what a lost one deleted"
    after = {"write": {"new", "old", "t"}, "remove": {"t"}}.get(name, {"old", "t"})
    assert folder.names() == after
    assert name != "write" or folder.read_bytes("new") == DATA


def test_a_file_is_one_put_and_one_get(server: FlakyS3, bucket: str) -> None:
    folder = Folder(f"{bucket}/run")
    server.failing(None, 0)
    folder.write_bytes("x", DATA)
    folder.read_bytes("x")
    assert [method for method, _, _ in server.requests] == ["PUT", "HEAD", "GET"]


def test_a_file_of_many_parts_is_whole(bucket: str) -> None:
    large = os.urandom(1 << 20) * 24  # the S3 client sends 10 MB at a time
    Folder(f"{bucket}/run").write_bytes("x", large)
    assert Folder(f"{bucket}/run").read_bytes("x") == large


def test_reading_goes_on_where_it_broke_off(server: FlakyS3, bucket: str) -> None:
    Folder(bucket).write_bytes("x", DATA)
    filesystem, root = open_location(bucket)
    with filesystem.open_input_stream(f"{root}/x") as stream:
        start = stream.read(100_000)
        server.failing("reset", 4)
        assert start + stream.read(len(DATA)) == DATA
        assert server.failed == 4


def test_folders_are_copied_through_failures(server: FlakyS3, bucket: str, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        Folder(str(tmp_path / "a" / name)).write_bytes("file", DATA)
    turn = 0

    def every_third(method: str, path: str) -> Fault:
        nonlocal turn
        turn += 1
        return 429 if turn % 3 == 0 else None

    server.fault = every_third
    copy_tree(str(tmp_path / "a"), f"{bucket}/copy")
    copy_tree(f"{bucket}/copy", f"{bucket}/again")
    copy_tree(f"{bucket}/again", str(tmp_path / "back"))
    assert server.failed > 5
    for name in ("one", "two", "three"):
        assert Folder(str(tmp_path / "back" / name)).read_bytes("file") == DATA


def test_a_copy_that_the_store_does_not_take_is_an_error(
    server: FlakyS3, bucket: str, tmp_path: Path
) -> None:
    Folder(str(tmp_path)).write_bytes("file", b"small: it is sent only when the copy is closed")
    server.failing(403, 1000, "PUT")
    with pytest.raises(StorageError, match=rf"cannot write '{bucket}/copy/file'"):
        copy_tree(str(tmp_path), f"{bucket}/copy")


def test_a_refusal_is_not_repeated_and_shows_no_credentials(server: FlakyS3, bucket: str) -> None:
    folder = Folder(bucket.replace("s3://", "s3://key:hush@") + "/run")
    server.failing(403, 1000)
    for operation in (folder.names, lambda: folder.write_bytes("x", b"1"), lambda: folder.has("x")):
        server.requests.clear()
        with pytest.raises(
            StorageError, match=rf"'{bucket}/run.*ACCESS_DENIED.*check the URI and the"
        ) as refusal:
            operation()
        assert len(server.requests) == 1
        assert "hush" not in str(refusal.value) and "\n" not in str(refusal.value)


def test_patience_ends(server: FlakyS3, bucket: str) -> None:
    server.failing(429, 1000)
    with pytest.raises(StorageError, match=rf"cannot write '{bucket}/run/x' .*6 times in a row"):
        Folder(f"{bucket}/run").write_bytes("x", DATA)
    server.failing(None, 0)
    assert Folder(f"{bucket}/run").names() == set()


def test_a_transfer_that_fails_leaves_no_part_of_a_file(
    server: FlakyS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Folder(bucket).write_bytes("source", DATA * 3)
    monkeypatch.setattr("muki_ray.filesystem._CHUNK", len(DATA))

    def after_the_first_piece(method: str, path: str) -> Fault:
        return 403 if method == "GET" and any(seen == "GET" for seen, _, _ in server.requests) else None

    filesystem, root = open_location(bucket)
    # not the same place to pyarrow: no copy within the server
    other, _ = open_location(f"{bucket}?region=eu-west-3")
    for target, path in ((other, f"{root}/copy"), (fs.LocalFileSystem(), str(tmp_path / "copy"))):
        server.requests.clear()
        server.fault = after_the_first_piece
        with pytest.raises(StorageError, match="cannot read"):
            copy_file(filesystem, f"{root}/source", target, path)
        assert sum(seen == "GET" for seen, _, _ in server.requests) == 2
        server.failing(None, 0)
    assert Folder(bucket).names() == {"source"}
    assert not list(tmp_path.iterdir())


def test_a_filesystem_travels_without_the_credentials_of_its_process(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hushhush")
    filesystem, root = open_location(f"{bucket}/run")
    Folder(f"{bucket}/run").write_bytes("x", b"1")
    packed = pickle.dumps(filesystem)
    assert b"hushhush" not in packed
    copy = pickle.loads(packed)
    assert copy == filesystem
    assert copy.get_file_info(f"{root}/x").type == fs.FileType.File


# -- local -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_network_file_system_that_stumbles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(retrying, "PAUSES_S", (0.0,) * 3)
    owner: Any = os if step == "fsync" else Path
    real, left = (
        getattr(owner, step),
        [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "I/O error")],
    )

    def stumble(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return real(*arguments)

    monkeypatch.setattr(owner, step, stumble)
    Folder(str(tmp_path)).write_table(part_name(0), TABLE)
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == [part_name(0)]
    assert Folder(str(tmp_path)).read_table(part_name(0)).equals(TABLE)


def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(*_: Any) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=rf"cannot write '{tmp_path}/x' \(.*No space left.*\); make room$"):
        Folder(str(tmp_path)).write_bytes("x", b"1")
    assert len(calls) == 1 and list(tmp_path.iterdir()) == []


class _Stumbling(fs.FSSpecHandler):
    """Files whose first read fails."""

    def __init__(self, failures: list[OSError]) -> None:
        super().__init__(LocalFileSystem())
        self.failures = failures

    def open_input_file(self, path: str) -> pa.NativeFile:
        file, failures = self.fs.open(path, "rb"), self.failures
        read = file.read

        class File:
            def read(self, size: int) -> bytes:
                if failures and file.tell():
                    raise failures.pop()
                return read(size)

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

        return pa.PythonFile(File(), mode="r")

    open_input_stream = open_input_file


def test_a_stale_file_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PAUSES_S", (0.0,) * 3)
    (tmp_path / "x.gz").write_bytes(DATA)
    failures = [OSError(errno.ESTALE, "Stale file handle")] * 2
    filesystem = fs.PyFileSystem(Steady("", lambda: fs.PyFileSystem(_Stumbling(failures))))
    with filesystem.open_input_stream(str(tmp_path / "x.gz"), compression=None) as stream:
        assert stream.read(1000) + stream.read(1000) + stream.read(len(DATA)) == DATA
    assert not failures


class _Full:
    """A temporary file on a disk that has room for a few bytes, of which it learns when it likes."""

    def __init__(self, told_at: str) -> None:
        self.told_at, self.kept = told_at, b""

    def _fail(self, now: str) -> None:
        if now == self.told_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, data: Any) -> int:
        self.kept += bytes(data)[:5]
        self._fail("write")
        return len(data)

    def flush(self) -> None:
        self._fail("flush")

    def tell(self) -> int:
        return len(self.kept)

    def close(self) -> None:
        pass

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.mark.parametrize("told_at", ["write", "flush"])
def test_what_the_temporary_disk_does_not_hold_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told_at: str
) -> None:
    folder = Folder(f"memory://{tmp_path.name}")
    folder.write_bytes("old", DATA)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: _Full(told_at))
    for name in ("new", "old"):
        with pytest.raises(StorageError, match=r"cannot keep what is to be written to .*make room"):
            folder.write_bytes(name, bytes(10 << 20))
    gc.collect()  # closes what was dropped
    assert folder.names() == {"old"}
    assert folder.read_bytes("old") == DATA


def test_a_place_that_nobody_can_make_is_a_user_error() -> None:
    with pytest.raises(StorageError, match=r"cannot write '/proc/nowhere/run/x' .*check the path"):
        Folder("/proc/nowhere/run").write_bytes("x", b"1")
