"""Work on threads beside the main one, of which all ends when one part fails. Knows nothing of what the work is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

# seconds that the others have to end once one has failed
_PATIENCE_S = 3.0
_T = TypeVar("_T")


class StoppedError(Exception):
    """What a side raises that ends because another one did."""


class Sides:
    """Threads beside the main one.

    Args:
        on_failure: called when a side fails, on its thread; tells those who do not look at `stop`.

    Attributes:
        stop: set when nobody waits for results any more.
        failure: what the first side to fail raised.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.stop = threading.Event()
        self.failure: BaseException | None = None
        self._on_failure, self._lock = on_failure, threading.Lock()
        self._threads: list[threading.Thread] = []

    def begin(self, work: Callable[[], _T]) -> Future[_T]:
        """Start work; its result."""
        result: Future[_T] = Future()

        def run() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                first = self._is_first(error)
                result.set_exception(error)
                if first:
                    self.stop.set()
                    self._on_failure()

        self._threads.append(threading.Thread(target=run, name="muki-ray-beside", daemon=True))
        self._threads[-1].start()
        return result

    def _is_first(self, error: BaseException) -> bool:
        """Whether this is what went wrong, and not what comes of it."""
        with self._lock:
            if self.failure is not None or self.stop.is_set():
                return False
            self.failure = error
            return True

    def end(self) -> None:
        """Tell all to stop, and wait a little: who waits for a cluster may not hear it."""
        self.stop.set()
        deadline = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
