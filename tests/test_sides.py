"""Work on threads: results come back, the first failure counts, and all hear of the end."""

from __future__ import annotations

import threading

import pytest

from muki_ray.workflow.sides import Sides, StoppedError


def test_results_come_back() -> None:
    sides = Sides(lambda: pytest.fail("nothing failed"))
    assert [sides.begin(lambda n=n: n * n).result(10) for n in (1, 2)] == [1, 4]  # type: ignore[misc]
    sides.end()
    assert sides.stop.is_set() and sides.failure is None


def test_the_first_failure_counts_and_the_others_hear_of_it() -> None:
    told = threading.Event()
    sides = Sides(told.set)

    def follower() -> None:
        sides.stop.wait(10)
        raise StoppedError

    following = sides.begin(follower)

    def failing() -> None:
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        sides.begin(failing).result(10)
    with pytest.raises(StoppedError):
        following.result(10)
    assert told.wait(10) and isinstance(sides.failure, ValueError)


def test_what_fails_after_the_end_is_no_failure() -> None:
    sides = Sides(lambda: pytest.fail("nobody waits any more"))

    def late() -> None:
        sides.stop.wait(10)
        raise ValueError("the cluster is gone")

    following = sides.begin(late)
    sides.end()
    assert isinstance(following.exception(10), ValueError) and sides.failure is None
