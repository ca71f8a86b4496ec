"""A thread that reads ahead, so that reading and tokenizing stay off the critical path. Knows nothing of what is read."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

_DEPTH = 16  # items; some take long, for with a batch comes the tokenizing of many
# the thread may wait for a shard that never comes; it ends by itself once that is known
_PATIENCE_S = 5.0
_S = TypeVar("_S")
_T = TypeVar("_T")


def ahead(items: Iterable[_S], make: Callable[[_S], _T]) -> Generator[tuple[_S, _T]]:
    """Items, and what is made of each, in their order; close it to end the thread."""
    waiting: queue.Queue[Any] = queue.Queue(_DEPTH)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put((item, make(item)))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="muki-ray-batches", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(_PATIENCE_S)
