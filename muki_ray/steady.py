"""A filesystem that tries again: every operation of a pyarrow filesystem, made patient.

What a failure is, and how long to wait, is `retrying`'s business. A file that is read goes on at the byte where it
broke off; one that is written to remote storage is collected here and sent whole, as often as it takes, so that what
was half written is never left there, neither by a failed transfer nor by a failed process.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import fs

from muki_ray.errors import UserError
from muki_ray.retrying import patiently, refused

T = TypeVar("T")


class Steady(fs.FileSystemHandler):
    """Behind a `pyarrow.fs.PyFileSystem`: another filesystem, patiently.

    Travels to other processes without the open filesystem, and so without credentials of this process.

    Args:
        shown: what messages put before a path, such as `s3://`.
        opener: gives the filesystem; picklable.
        inner: what it gave, where that is known.
    """

    def __init__(
        self, shown: str, opener: Callable[[], fs.FileSystem], inner: fs.FileSystem | None = None
    ) -> None:
        self._shown, self._opener = shown, opener
        self.inner = inner or opener()
        self._local = isinstance(self.inner, fs.LocalFileSystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._shown, self._opener)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steady) and bool(self.inner.equals(other.inner))

    def __hash__(self) -> int:
        return hash(self._shown)

    def _patiently(self, what: str, path: str, operation: Callable[[], T]) -> T:
        return patiently(what, self._shown + path, operation)

    def get_type_name(self) -> str:
        """The inner filesystem's."""
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        """As the inner filesystem does."""
        return str(self.inner.normalize_path(path))

    # -- looking -------------------------------------------------------------------------------------

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        """What lies at these paths."""
        first = paths[0] if paths else ""
        return list(self._patiently("look at", first, lambda: self.inner.get_file_info(paths)))

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """What lies in a folder."""
        return list(self._patiently("list", selector.base_dir, lambda: self.inner.get_file_info(selector)))

    # -- changing ------------------------------------------------------------------------------------

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a folder, where there is such a thing: S3 knows names of files only."""
        if isinstance(self.inner, fs.S3FileSystem) and "/" in path.strip("/"):
            return
        self._patiently("make", path, lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_file(self, path: str) -> None:
        """Delete a file."""
        self._patiently("delete", path, _gone(lambda: self.inner.delete_file(path)))

    def delete_dir(self, path: str) -> None:
        """Delete a folder."""
        self._patiently("delete", path, _gone(lambda: self.inner.delete_dir(path)))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """Empty a folder."""
        empty = partial(self.inner.delete_dir_contents, path, missing_dir_ok=missing_dir_ok)
        self._patiently("empty", path, empty)

    def delete_root_dir_contents(self) -> None:
        """Never: nothing here has a use for it."""
        raise NotImplementedError("the root of a filesystem is not emptied")

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file within the filesystem."""
        self._patiently("write", dest, lambda: self.inner.copy_file(src, dest))

    def move(self, src: str, dest: str) -> None:
        """Once: whether a move whose answer was lost has happened, a second try could not tell."""
        self.inner.move(src, dest)

    # -- files ---------------------------------------------------------------------------------------

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """A file to be read from its start to its end."""
        # no compression: pyarrow would guess it from the name, and PyFileSystem adds what was asked for
        return self._reading(path, partial(self.inner.open_input_stream, path, compression=None))

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to be read anywhere."""
        return self._reading(path, partial(self.inner.open_input_file, path))

    def _reading(self, path: str, opener: Callable[[], pa.NativeFile]) -> pa.NativeFile:
        attempt = partial(self._patiently, "read", path)
        return pa.PythonFile(_Reading(attempt, opener, partial(self.inner.open_input_file, path)), mode="r")

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        """A new file, or a new content of an old one."""
        opener = partial(self.inner.open_output_stream, path, compression=None, metadata=metadata)
        if self._local:
            return self._patiently("write", path, opener)
        return pa.PythonFile(_Sending(partial(self._patiently, "write", path), opener, path), mode="w")

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> pa.NativeFile:
        """Never: a write that is repeated must not add to what the first try left."""
        raise NotImplementedError("nothing is appended to; write the file anew")


def _gone(delete: Callable[[], None]) -> Callable[[], None]:
    """A deletion that may be repeated: what is not there the second time was deleted the first."""
    tries = 0

    def again() -> None:
        nonlocal tries
        tries += 1
        try:
            delete()
        except FileNotFoundError:
            if tries == 1:
                raise

    return again


class _Reading:
    """A file object that knows how far it is, and opens the file again where a read fails."""

    def __init__(
        self,
        attempt: Callable[[Callable[[], Any]], Any],
        opener: Callable[[], pa.NativeFile],
        seekable: Callable[[], pa.NativeFile],
    ) -> None:
        self._attempt, self._seekable = attempt, seekable
        self._file: pa.NativeFile | None = attempt(opener)
        self._at = 0
        self.closed = False

    def _on_file(self, operation: Callable[[pa.NativeFile], T]) -> T:
        def once() -> T:
            if self._file is None:
                fresh = self._seekable()
                fresh.seek(self._at)
                self._file = fresh
            try:
                return operation(self._file)
            except OSError:
                self._file = None
                raise

        result: T = self._attempt(once)
        return result

    def read_buffer(self, nbytes: int) -> pa.Buffer:
        """Up to so many bytes, without a copy."""
        buffer = self._on_file(lambda file: file.read_buffer(nbytes))
        self._at += buffer.size
        return buffer

    def read(self, nbytes: int) -> bytes:
        """Up to so many bytes."""
        return bytes(self.read_buffer(nbytes).to_pybytes())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; only in files that were opened to be read anywhere."""
        self._at = int(self._on_file(lambda file: file.seek(offset, whence)))
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def close(self) -> None:
        """Let go of the file."""
        self.closed, file, self._file = True, self._file, None
        if file is not None:
            file.close()


class _Sending:
    """A file object that keeps what is written in a temporary file, and sends all of it when it is closed.

    One that is dropped without being closed sends nothing, and so does one that could not keep all of it.
    """

    def __init__(
        self, attempt: Callable[[Callable[[], Any]], Any], opener: Callable[[], pa.NativeFile], path: str
    ) -> None:
        self._attempt, self._opener, self._path = attempt, opener, path
        self._kept = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self.closed = False

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        try:
            return self._kept.write(data)
        except OSError as error:
            raise self._broken(error) from error

    def flush(self) -> None:
        """Nothing is sent before the end."""

    def close(self) -> None:
        """Send."""
        if self.closed:
            return
        self.closed = True
        with self._kept as kept:
            try:
                kept.flush()
            except OSError as error:
                raise self._broken(error) from error
            if not kept.tell():
                self._attempt(lambda: self._send(b""))
                return
            content = mmap.mmap(kept.fileno(), 0, access=mmap.ACCESS_READ)
            self._attempt(lambda: self._send(content))

    def _broken(self, error: OSError) -> UserError:
        """What to raise where the temporary file took only a part: that part must never be sent."""
        self.closed = True
        with suppress(OSError):  # what it still holds does not fit either
            self._kept.close()
        return refused("keep what is to be written to", self._path, error)

    def _send(self, content: Any) -> None:
        # in one piece: a stream that was given a part of it would, when closed, leave that part as the file
        stream = self._opener()
        stream.write(content)
        stream.close()
