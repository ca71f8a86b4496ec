"""The thread that reads ahead: in order, its errors reach the caller, it ends with its consumer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

import pytest

from muki_ray.student.ahead import ahead


def reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "muki-ray-batches"]


def test_items_and_what_is_made_of_them_in_their_order() -> None:
    assert list(ahead(range(50), str)) == [(number, str(number)) for number in range(50)]
    assert not reading()


@pytest.mark.parametrize("where", ["reading", "making"])
def test_errors_of_the_thread_reach_the_caller(where: str) -> None:
    def items() -> Iterator[int]:
        yield 1
        if where == "reading":
            raise ValueError("the part is gone")
        yield 2

    def made(item: int) -> int:
        if item == 2:
            raise ValueError("the part is gone")
        return -item

    stream = ahead(items(), made)
    assert next(stream) == (1, -1)
    with pytest.raises(ValueError, match="the part is gone"):
        next(stream)
    assert not reading()


def test_the_thread_ends_with_its_consumer() -> None:
    stream = ahead(count(), str)
    next(stream)
    assert len(reading()) == 1
    stream.close()
    assert not reading()
