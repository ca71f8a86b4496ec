"""The plan as people see it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from muki_ray.labels import TeacherLabels, join
from muki_ray.planning.estimate import Pace
from muki_ray.planning.waves import PoolPlan
from muki_ray.report.plan import plan_lines
from muki_ray.workflow.plan import Plan


def plan(count: int = 2, bad: int = 0, **changes: Any) -> Plan:
    """A plan of so many teachers over 1,000 good rows; the first is stored."""
    corpora = (SimpleNamespace(rows_out=1000, quarantined=bad),)
    names = [f"t{m}" for m in range(count)]
    tasks = [
        SimpleNamespace(name=n, corpora=corpora, spec=SimpleNamespace(fingerprint=f"{n}-0123456789"))
        for n in names
    ]
    waiting = tuple(names[1:])
    pools = [[PoolPlan(waiting, 0.9, 1.0, "A100", 1, 2, 1, 2)]] if waiting else []
    settings: dict[str, Any] = {
        "tasks": tuple(tasks),
        "waves": pools,
        "to_score": {n: 0 if n == "t0" else 1000 for n in names},
        "stored": {n: 1000 if n == "t0" else 0 for n in names},
        "loads": dict.fromkeys(waiting, 1),
        **changes,
    }
    return Plan(**settings)


def space(count: int = 2) -> Any:
    return join([TeacherLabels(f"t{m}", (f"label{m}", f"label{m + 1}")) for m in range(count)])


def lines(
    drawn: Plan, count: int = 2, devices: dict[str, float] | None = None, may_add: int = 0
) -> list[str]:
    return list(plan_lines(drawn, space(count), devices or {"CPU": 2.0, "memory": 1e9}, may_add))


def test_before_anything_is_measured() -> None:
    assert lines(plan()) == [
        "plan: 2 teachers, 1,000 rows, 3 labels; 2 CPUs",
        "  teacher  labels  fingerprint  to score  stored  rows/s  MiB  actor time  device-hours",
        "  t0            2     t0-01234         0   1,000       -    -           -             -",
        "  t1            2     t1-01234     1,000       0       -    -           -             -",
        "  labels that several teachers know: label1",
        "  t1: 2 actors (0.9 CPUs, 1 A100, 1 thread)",
    ]


def test_what_is_waited_for() -> None:
    assert "  waits for nodes that are not there yet: t1: 1 CPUs" in lines(plan(absent=("t1: 1 CPUs",)))


def test_rows_set_aside_are_counted() -> None:
    assert lines(plan(bad=1200))[0] == "plan: 2 teachers, 1,000 rows (1,200 more set aside), 3 labels; 2 CPUs"


def test_measured() -> None:
    drawn = plan(paces={"t1": Pace(5.0, 10.0, 2.0, 812.4)})
    found = lines(drawn, devices={"CPU": 8.0, "GPU": 1.0}, may_add=3)
    assert found[0] == "plan: 2 teachers, 1,000 rows, 3 labels; 8 CPUs, 1 GPU, 3 more nodes may come"
    assert found[3].split() == ["t1", "2", "t1-01234", "1,000", "0", "2", "812", "8m30s", "0.14"]
    assert found[-1] == "  scoring: about 8m35s, 0.14 GPU-hours and 0.13 CPU-hours"


def test_what_could_not_be_measured_has_no_estimate() -> None:
    assert lines(plan(paces={"t1": None}))[-1].startswith("  scoring: no estimate;")


def test_everything_is_stored() -> None:
    found = lines(plan(1), 1)
    assert found[-1] == "  nothing to score: all evidence is stored"


@pytest.mark.parametrize("count", [12, 13, 40])
def test_long_lists_are_cut_and_counted(count: int) -> None:
    found = lines(plan(count), count)
    assert sum(line.startswith("  t") for line in found) == 1 + 12
    assert (f"  ... and {count - 12} more" in found) is (count > 12)
    assert any(line.endswith(f"for {count - 1} teachers in turn") for line in found)
    assert any(line.endswith(f"and {count - 1 - 6} more") and "label1," in line for line in found)
