"""What is tried again, how often, and what is said."""

from __future__ import annotations

import errno
import logging

import pytest

from muki_ray import retrying
from muki_ray.errors import CorpusError, StorageError
from muki_ray.retrying import patiently

AWS = "When reading key 'x' in bucket 'b': AWS Error {} during GetObject operation: no"


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, none of them long."""
    made: list[float] = []
    monkeypatch.setattr(retrying.time, "sleep", made.append)
    monkeypatch.setattr(retrying, "_told", set())
    return made


class Failing:
    """Fails as often as it is told."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return "done"


class AnsweredError(Exception):
    """What clients of other stores raise."""

    def __init__(self, status: int) -> None:
        super().__init__("no")
        self.status_code = status


class ReadTimeoutError(Exception):
    """The same, of another one."""


PASSING = [
    *(OSError(number, "no") for number in (errno.EIO, errno.ESTALE, errno.ECONNRESET, errno.ETIMEDOUT)),
    ConnectionResetError("gone"),
    TimeoutError("late"),
    *(OSError(AWS.format(kind)) for kind in ("SLOW_DOWN", "INTERNAL_FAILURE", "NETWORK_CONNECTION")),
    *(OSError(AWS.format(f"UNKNOWN (HTTP status {status})")) for status in (429, 500, 503)),
    AnsweredError(503),
    ReadTimeoutError("late"),
]
LASTING = [
    *(OSError(number, "no") for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EISDIR)),
    *(OSError(AWS.format(kind)) for kind in ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID")),
    OSError(AWS.format("UNKNOWN (HTTP status 400)")),
    OSError("Not a regular file: 'b'"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_may_pass_is_waited_out(error: Exception, pauses: list[float]) -> None:
    operation = Failing(error, 3)
    assert patiently("read", "s3://b/x", operation) == "done"
    assert operation.calls == 4
    assert len(pauses) == 3 and pauses[0] < pauses[1] < pauses[2], "it waits longer each time"


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_lasts_fails_at_once_and_names_the_place(error: Exception, pauses: list[float]) -> None:
    operation = Failing(error, 1)
    with pytest.raises(
        StorageError, match=r"^cannot write 's3://b/x' \(.*\); (check the URI|make room)"
    ) as refusal:
        patiently("write", "s3://b/x", operation)
    assert operation.calls == 1 and not pauses
    assert isinstance(refusal.value, OSError) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), CorpusError("y"), ValueError("z"), AnsweredError(404)], ids=str
)
def test_what_is_no_failure_of_storage_comes_back_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as back:
        patiently("read", "/x", Failing(error, 1))
    assert back.value is error


def test_what_does_not_pass_in_time_is_an_error_of_the_users(pauses: list[float]) -> None:
    operation = Failing(OSError(errno.EIO, "Input/output error"), 1000)
    with pytest.raises(
        StorageError, match=r"^cannot list 's3://b/run' .*Input.*8 times in a row; .*goes on where it was$"
    ):
        patiently("list", "s3://key:hush@b/run?token=hush", operation)
    assert operation.calls == len(pauses) + 1 == 8
    assert 40 < sum(pauses) < 100, "seconds"


def test_each_kind_of_operation_is_logged_once_and_without_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "muki_ray")
    for what in ("read", "write", "read"):
        patiently(what, "s3://key:hush@b/x", Failing(OSError(errno.EIO, "at s3://key:hush@b/x"), 2))
    assert [record.getMessage().split(" now")[0] for record in caplog.records] == [
        "cannot read 's3://b/x'",
        "cannot write 's3://b/x'",
    ]
    assert "hush" not in caplog.text
