"""One line of progress per stage: rows, rows per second, time left. For people and for job logs.

Knows a text stream and a clock; knows nothing of what the rows are.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO
from weakref import WeakKeyDictionary

_TERMINAL_PAUSE = 0.2  # seconds between two states of the line: five a second
_LOG_PAUSE = 10.0  # seconds between two lines of a job log
_WINDOW = 60.0  # seconds that the shown rate looks back, so that a slow start does not spoil the estimate

# All stages of a process share its terminal: one lock, and what now stands on each terminal's last line.
_lock = threading.RLock()
_standing: WeakKeyDictionary[TextIO, str] = WeakKeyDictionary()


class Progress:
    """Progress of one stage. Thread safe; a stream that cannot be written to never stops the work.

    Args:
        stage: what the line is called.
        total: rows in all; None where nobody knows.
        stream: default: `sys.stderr`. A terminal gets one line that is rewritten, any other stream a new
            line now and then.
        skip: rows that were finished before this process began; they count as done, not in the rate.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        stage: str,
        total: int | None,
        stream: TextIO | None = None,
        skip: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._total = stage, total
        self._stream = sys.stderr if stream is None else stream
        self._skip, self._done, self._note = skip, skip, ""
        self._clock = clock
        self._began = clock()
        self._terminal = _is_terminal(self._stream)
        # a log's first line comes after a pause, a terminal's at once
        self._shown = self._began - (_TERMINAL_PAUSE if self._terminal else 0.0)
        self._samples: deque[tuple[float, int]] = deque([(self._began, 0)])
        self._closed = False

    def update(self, done: int, note: str = "", skip: int | None = None) -> None:
        """Say how far the stage is.

        Args:
            done: rows finished so far, those finished before this process included.
            note: shown at the end of the line.
            skip: rows of `done` that cost nothing because they were finished before; default: as before.
        """
        with _lock:
            if self._closed:
                return
            self._done, self._note = done, note
            if skip is not None:
                self._skip = skip
            now = self._clock()
            self._samples.append((now, self._fresh))
            while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
                self._samples.popleft()
            if now - self._shown >= (_TERMINAL_PAUSE if self._terminal else _LOG_PAUSE):
                self._shown = now
                _show(self._stream, self._line(), self._terminal)

    def close(self, note: str = "") -> None:
        """Print the last line: rows, time taken, mean rate. Closing again does nothing."""
        with _lock:
            if self._closed:
                return
            self._closed = True
            taken = self._clock() - self._began
            parts = [f"{self._stage}: {_rows(self._done)} in {duration(taken)}"]
            if self._fresh and taken > 0:
                parts.append(_rate(self._fresh / taken))
            if self._skip:
                parts.append(f"{self._skip:,} reused")
            if note:
                parts.append(note)
            say(", ".join(parts), self._stream, over=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(f"stopped by {kind.__name__}" if kind else self._note)

    @property
    def _fresh(self) -> int:
        """Rows that this process has worked on."""
        return max(self._done - self._skip, 0)

    def _line(self) -> str:
        (first, before), (last, now) = self._samples[0], self._samples[-1]
        rate = (now - before) / (last - first) if last > first else 0.0
        if self._total is None:
            parts = [f"{self._stage}: {_rows(self._done)}"]
        else:
            share = min(self._done / self._total, 1.0) if self._total else 1.0
            parts = [f"{self._stage}: {self._done:,}/{self._total:,} rows", f"{int(100 * share)}%"]
        if rate > 0:
            parts.append(_rate(rate))
            if self._total is not None:
                parts.append(f"ETA {duration(max(self._total - self._done, 0) / rate)}")
        if self._note:
            parts.append(self._note)
        return "  ".join(parts)


def say(text: str, stream: TextIO | None = None, over: bool = False) -> None:
    """Print a line; a progress line that stands on the terminal moves down and stays whole.

    Args:
        text: the line.
        stream: default: `sys.stderr`.
        over: the line takes the place of the progress line.
    """
    stream = sys.stderr if stream is None else stream
    with _lock:
        standing = _standing.pop(stream, "")
        _write(stream, _cleared(standing) + text + "\n")
        if standing and not over:
            _show(stream, standing, terminal=True)


def duration(seconds: float) -> str:
    """`8s`, `1m05s`, `2h03m`, `3d04h`: two units at most."""
    whole = max(int(seconds + 0.5), 0)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _rate(rate: float) -> str:
    return f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"


def _show(stream: TextIO, line: str, terminal: bool) -> None:
    if not terminal:
        _write(stream, line + "\n")
        return
    # a line that wraps could not be rewritten
    line = line[: shutil.get_terminal_size().columns - 1]
    _write(stream, _cleared(_standing.get(stream, "")) + line)
    _standing[stream] = line


def _cleared(standing: str) -> str:
    """What takes a standing line off the terminal, without escape codes."""
    return f"\r{' ' * len(standing)}\r" if standing else ""


def _write(stream: TextIO, text: str) -> None:
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:  # the stream's encoding lacks a character of a note
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()
    except (OSError, ValueError):  # a closed pipe or stream
        return


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False
