"""Trying again: storage that does not answer now may answer in a minute.

The one place that knows which failures of storage pass, how often and how long to wait, and what to say when they do
not. Knows errors and a clock; knows no filesystem. What is tried again must be repeatable: reading, listing, writing
a whole file.
"""

from __future__ import annotations

import errno
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from muki_ray.errors import StorageError, UserError
from muki_ray.uris import clean

T = TypeVar("T")

# between tries; an S3 client tries three times within about two seconds before it reports a failure at all
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
# an interrupted connection, a server that is gone or busy, a network file system whose server restarts
_PASSING = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "EAGAIN", "EINTR", "EBUSY", "EPIPE", "ENOLCK", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT",
                 "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENETDOWN", "ENETRESET", "ENETUNREACH", "EHOSTDOWN",
                 "EHOSTUNREACH", "EREMOTEIO")
    if hasattr(errno, name)
}  # fmt: skip
_FULL = {errno.ENOSPC, errno.EDQUOT}
# what pyarrow's S3 client says: the kind of error, and the status where it has no name for it
_AWS_ERROR = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))?")
_AWS_PASSING = {"INTERNAL_FAILURE", "NETWORK_CONNECTION", "REQUEST_EXPIRED", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE",
                "SLOW_DOWN", "THROTTLING"}  # fmt: skip
_MOST_REASON = 300  # characters

_log = logging.getLogger("muki_ray")
_told: set[str] = set()


def patiently(what: str, where: str, operation: Callable[[], T]) -> T:
    """What the operation gives; a failure that may pass is waited out, for about a minute and a half.

    Args:
        what: a verb for messages, such as `write`; the first failure of each that passes is logged.
        where: path or URI.
        operation: repeatable.

    Raises:
        StorageError: it failed as often as it was tried, or in a way that time does not mend.
        FileNotFoundError: there is nothing; not wrapped, for to many callers that is an answer.
    """
    for tried, pause in enumerate((*PAUSES_S, None), start=1):
        try:
            return operation()
        except (UserError, FileNotFoundError):
            raise
        except Exception as error:
            if not passes(error):
                if isinstance(error, OSError):
                    raise refused(what, where, error) from error
                raise
            if pause is None:
                raise StorageError(
                    f"cannot {what} {where!r} ({_reason(error)}), {tried} times in a row; "
                    "when the storage answers again, run the same command: it goes on where it was"
                ) from error
            level = logging.DEBUG if what in _told else logging.WARNING
            _told.add(what)
            _log.log(level, "cannot %s %r now (%s); trying again", what, clean(where), _reason(error))
            # workers that failed together do not come back together
            time.sleep(pause * random.uniform(0.5, 1.0))
    raise AssertionError("the last try returns or raises")


def refused(what: str, where: str, error: OSError) -> StorageError:
    """An error that trying again does not mend, for the user."""
    if error.errno in _FULL:
        remedy = "make room"
    elif "://" in where:
        remedy = "check the URI and the credentials"
    else:
        remedy = "check the path and its permissions"
    return StorageError(f"cannot {what} {where!r} ({_reason(error)}); {remedy}")


def passes(error: Exception) -> bool:
    """Whether a failure may pass by itself."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = _status(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    aws = _AWS_ERROR.search(str(error))
    if aws is not None:
        return aws[1] in _AWS_PASSING
    # clients of other stores have kinds of their own, not all of them an OSError
    return any("Timeout" in kind.__name__ or "Connect" in kind.__name__ for kind in type(error).__mro__)


def _status(error: Exception) -> int | None:
    """HTTP status that an error carries, as an attribute or in its text."""
    for carrier in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(carrier, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    aws = _AWS_ERROR.search(str(error))
    return int(aws[2]) if aws is not None and aws[2] else None


def _reason(error: Exception) -> str:
    text = " ".join(clean(str(error)).split()) or type(error).__name__
    return text if len(text) <= _MOST_REASON else text[: _MOST_REASON - 3] + "..."
