"""Time and device-hours of a plan, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.planning.estimate import Pace, estimate
from muki_ray.planning.waves import PoolPlan


def pool(*teachers: str, **changes: Any) -> PoolPlan:
    settings = {"num_cpus": 2.0, "num_gpus": 0.0, "actors": 1, **changes}
    actors = settings["actors"]
    return PoolPlan(teachers, settings["num_cpus"], settings["num_gpus"], None, 1, actors, 1, actors)


PACE = Pace(start_s=10.0, load_s=5.0, rows_per_s=100.0, memory_mib=500.0)


def test_one_teacher_on_one_actor() -> None:
    found = estimate([[pool("a")]], {"a": PACE}, {"a": 36_000}, {"a": 1})
    assert found.seconds == 10 + 5 + 360
    cost = found.teachers["a"]
    assert (cost.actor_s, cost.gpu_hours, cost.cpu_hours) == (365, 0.0, pytest.approx(365 * 2 / 3600))


def test_actors_share_the_rows_but_each_loads() -> None:
    found = estimate([[pool("a", actors=4, num_gpus=0.5)]], {"a": PACE}, {"a": 36_000}, {"a": 4})
    assert found.seconds == 10 + (4 * 5 + 360) / 4
    assert found.gpu_hours == pytest.approx(380 * 0.5 / 3600)


def test_a_wave_is_as_long_as_its_longest_pool_and_waves_add_up() -> None:
    rows = {"a": 1000, "b": 5000, "c": 2000}
    waves = [[pool("a"), pool("b")], [pool("c")]]
    found = estimate(waves, dict.fromkeys("abc", PACE), rows, dict.fromkeys("abc", 1))
    assert found.seconds == (10 + 5 + 50) + (10 + 5 + 20)


def test_teachers_in_turns_start_once() -> None:
    rows, names = {}, [f"t{i}" for i in range(8)]
    rows = dict.fromkeys(names, 1000)
    crew = pool(*names, actors=2)
    found = estimate([[crew]], dict.fromkeys(names, PACE), rows, dict.fromkeys(names, 1))
    assert found.seconds == 10 + 8 * (5 + 10) / 2


def test_no_more_actors_than_turns_and_no_shorter_than_the_longest() -> None:
    crew = pool("a", "b", actors=8)
    found = estimate([[crew]], {"a": PACE, "b": PACE}, {"a": 10_000, "b": 100}, {"a": 1, "b": 1})
    assert found.seconds == 10 + 5 + 100


def test_nothing_to_do() -> None:
    found = estimate([], {}, {}, {})
    assert (found.seconds, found.gpu_hours, found.cpu_hours, found.teachers) == (0.0, 0.0, 0.0, {})


@given(rows=st.integers(1, 10**9), more=st.integers(0, 10**6), actors=st.integers(1, 64))
def test_more_rows_never_take_less_and_more_actors_never_longer(rows: int, more: int, actors: int) -> None:
    def seconds(count: int, at_once: int) -> float:
        return estimate([[pool("a", actors=at_once)]], {"a": PACE}, {"a": count}, {"a": at_once}).seconds

    assert seconds(rows + more, actors) >= seconds(rows, actors)
    assert seconds(rows, actors + 1) <= seconds(rows, actors) + 1e-9
