"""What a run has to say to a store that may be away for a while: it waits, in order, and never holds up the run for long.

Knows how to try again; knows nothing of what is said.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from muki_ray.tracking_store import calm
from muki_ray.tracking_values import short

# seconds that a store which did not answer is left alone: each try of a dead server takes seconds of the run
REST_S = 30.0
# calls that wait at most; the oldest give way
_MOST_WAITING = 10_000

_log = logging.getLogger("muki_ray")


class Outbox:
    """Calls to a store, from any thread. One that the store refuses is dropped; those that nobody answers wait.

    Args:
        answers: asks the store for something small; raises where nobody answers.
        clock: seconds, never going back.
    """

    def __init__(self, answers: Callable[[], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._answers, self._clock = answers, clock
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque(maxlen=_MOST_WAITING)
        self._refused: set[str] = set()
        self._away = False
        self._rest_until = -math.inf
        self._lock = threading.RLock()

    def send(self, what: str, call: Callable[[], None]) -> None:
        """Have it done now, or after what is waiting; warns once per kind until the store takes it again.

        Args:
            what: of the run, for messages.
        """
        with self._lock:
            self._waiting.append((what, call))
            if self._clock() >= self._rest_until:
                self._deliver()

    def close(self) -> None:
        """The last try."""
        with self._lock:
            self._deliver()
            if self._waiting:
                kinds = ", ".join(sorted({what for what, _ in self._waiting}))
                _log.warning(
                    "MLflow has not got the run's %s; run again to record what it lacks, but for a training's curves",
                    kinds,
                )

    def _deliver(self) -> None:
        while self._waiting:
            what, call = self._waiting[0]
            try:
                with calm(retries=1, timeout=60):
                    call()
            except Exception as error:  # whatever MLflow, a database driver or an object store may raise
                if not self._answering():
                    if not self._away:
                        _log.warning(
                            "MLflow does not answer (%s); the run goes on, and tells it later", short(error)
                        )
                    self._away, self._rest_until = True, self._clock() + REST_S
                    return
                if what not in self._refused:
                    _log.warning("MLflow did not take the run's %s (%s); the run goes on", what, short(error))
                self._refused.add(what)
            else:
                self._refused.discard(what)
            self._away = False
            self._waiting.popleft()

    def _answering(self) -> bool:
        try:
            with calm(retries=0, timeout=10):
                self._answers()
        except Exception:  # as above
            return False
        return True
