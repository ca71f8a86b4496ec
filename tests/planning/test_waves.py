"""Waves of teachers: what a cluster holds at once, and nothing that would wait for ever."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.config import ActorResources, TeacherConfig
from muki_ray.errors import ResourceError
from muki_ray.planning import LIGHT_TASK_CPUS, PoolPlan, equal_share, light_tasks, on_gpu, plan_waves, waiting


def teacher(name: str, **resources: Any) -> TeacherConfig:
    return TeacherConfig(name=name, model="m", resources=ActorResources(**resources))


def teachers(count: int, **resources: Any) -> list[TeacherConfig]:
    return [teacher(f"t{i}", **resources) for i in range(count)]


def names(waves: list[list[PoolPlan]]) -> list[list[tuple[str, ...]]]:
    return [[pool.teachers for pool in wave] for wave in waves]


def shape(waves: list[list[PoolPlan]]) -> list[int]:
    return [len(wave) for wave in waves]


# -- CPUs ------------------------------------------------------------------------------------------------


def test_two_teachers_on_two_cpus() -> None:
    (wave,) = plan_waves(teachers(2), {"CPU": 2}, may_grow=False)
    assert [(p.num_cpus, p.num_gpus, p.min_actors, p.max_actors, p.threads) for p in wave] == [
        (0.9, 0, 1, 1, 1)
    ] * 2
    # what is left is enough for reading and integration
    assert 2 - sum(p.num_cpus for p in wave) >= 2 * LIGHT_TASK_CPUS - 1e-9


def test_one_teacher_has_the_machine_to_itself() -> None:
    ((pool,),) = plan_waves(teachers(1), {"CPU": 2}, may_grow=False)
    assert (pool.num_cpus, pool.threads) == (1.8, 2)
    ((pool,),) = plan_waves(teachers(1), {"CPU": 1}, may_grow=False)
    assert (pool.num_cpus, pool.threads) == (0.8, 1)


def test_more_teachers_than_cpus_take_turns() -> None:
    ((pool,),) = plan_waves(teachers(10), {"CPU": 2}, may_grow=False)
    assert pool == PoolPlan(tuple(f"t{i}" for i in range(10)), 0.9, 0.0, None, 1, 2, 1, 2)


def test_free_cpus_become_more_actors() -> None:
    """64 CPUs: 8 threads are enough for one actor, so that there are 7 of them, and 7.8 CPUs left."""
    (wave,) = plan_waves(teachers(2), {"CPU": 64}, may_grow=False)
    assert [(p.num_cpus, p.threads, p.min_actors, p.max_actors) for p in wave] == [
        (8.0, 8, 1, 4),
        (8.0, 8, 1, 3),
    ]


def test_no_teacher_no_wave() -> None:
    assert plan_waves([], {"CPU": 2}, may_grow=False) == []


@pytest.mark.parametrize(("cpus", "at_once"), [(0, 1), (1, 1), (2, 1), (7, 1), (8, 2), (64, 16)])
def test_light_tasks_grow_with_the_cluster(cpus: float, at_once: int) -> None:
    assert light_tasks({"CPU": cpus}) == at_once
    assert at_once * LIGHT_TASK_CPUS <= max(cpus, 1)
    assert light_tasks({}) == 1


# -- GPUs ------------------------------------------------------------------------------------------------


def test_more_teachers_than_gpus_take_turns() -> None:
    ((pool,),) = plan_waves(teachers(4), {"CPU": 16, "GPU": 2}, may_grow=False)
    assert pool == PoolPlan(("t0", "t1", "t2", "t3"), 1.0, 1.0, None, 1, 2, 1, 2)


def test_only_teachers_that_ask_for_the_same_take_turns() -> None:
    """Two GPUs; whole ones for t0, t2 and t4, a half for the others."""
    wanted = [teacher(f"t{i}", num_gpus=1 if i % 2 == 0 else 0.5) for i in range(6)]
    (wave,) = plan_waves(wanted, {"CPU": 16, "GPU": 2}, may_grow=False)
    assert [(p.teachers, p.num_gpus, p.max_actors) for p in wave] == [
        (("t0", "t2", "t4"), 1.0, 1),
        (("t1", "t3", "t5"), 0.5, 2),
    ]


def test_what_does_not_fit_beside_the_others_waits_for_the_next_wave() -> None:
    wanted = [teacher("a", num_cpus=2), teacher("b", num_cpus=3), teacher("c", num_cpus=2)]
    waves = plan_waves(wanted, {"CPU": 4}, may_grow=False)
    assert names(waves) == [[("a", "c")], [("b",)]]


def test_free_gpus_become_more_actors() -> None:
    (wave,) = plan_waves(teachers(2), {"CPU": 32, "GPU": 8}, may_grow=False)
    assert [p.max_actors for p in wave] == [4, 4]


def test_gpus_are_not_left_idle_for_want_of_cpus() -> None:
    assert shape(plan_waves(teachers(4), {"CPU": 4, "GPU": 4}, may_grow=False)) == [4]
    ((pool,),) = plan_waves(teachers(1), {"CPU": 1, "GPU": 1}, may_grow=False)
    assert (pool.num_cpus, pool.num_gpus) == (0.8, 1.0)


@pytest.mark.parametrize(
    ("fraction", "gpus", "actors"),
    [
        (0.25, 1, 4),
        (0.5, 2, 4),
        (0.6, 2, 2),  # 1.2 of 2, but two of them do not fit one GPU
        (2.0, 4, 2),
        (2.0, 3, 1),
    ],
)
def test_shared_and_several_gpus(fraction: float, gpus: int, actors: int) -> None:
    ((pool,),) = plan_waves(teachers(8, num_gpus=fraction), {"CPU": 64, "GPU": gpus}, may_grow=False)
    assert (len(pool.teachers), pool.min_actors, pool.initial_actors, pool.max_actors) == (
        8,
        1,
        actors,
        actors,
    )


def test_gpu_and_cpu_teachers_share_a_wave() -> None:
    mixed = [teacher("g"), teacher("c", num_gpus=0)]
    (wave,) = plan_waves(mixed, {"CPU": 8, "GPU": 1}, may_grow=False)
    assert [(p.num_gpus, p.num_cpus) for p in wave] == [(1.0, 1.0), (0.0, 3.9)]


@pytest.mark.parametrize(
    ("wanted", "cluster", "expected"),
    [
        (None, {"CPU": 8}, False),
        (None, {"CPU": 8, "GPU": 1}, True),
        (0, {"CPU": 8, "GPU": 1}, False),
        (0.5, {"CPU": 8}, True),
    ],
)
def test_on_gpu(wanted: float | None, cluster: dict[str, float], expected: bool) -> None:
    assert on_gpu(teacher("a", num_gpus=wanted), cluster) is expected


def test_a_device_decides() -> None:
    """Whatever the cluster has: on the CPU no GPU is taken, and `cuda` waits for one."""
    on_cpu, on_cuda = (TeacherConfig(name=d, model="m", device=d) for d in ("cpu", "cuda"))
    (wave,) = plan_waves([on_cpu, teacher("auto")], {"CPU": 16, "GPU": 1}, may_grow=False)
    assert [(pool.teachers, pool.num_gpus) for pool in wave] == [(("cpu",), 0.0), (("auto",), 1.0)]
    assert wave[0].num_cpus > 1
    with pytest.raises(
        ResourceError, match=r"^teacher 'cuda' asks for .* and 1 GPUs, but this machine offers .* and 0 "
    ):
        plan_waves([on_cuda], {"CPU": 8}, may_grow=False)
    ((pool,),) = plan_waves([on_cuda], {"CPU": 8}, may_grow=True)
    assert pool.num_gpus == 1.0


def test_teachers_of_different_devices_share_no_pool() -> None:
    mixed = [TeacherConfig(name=f"t{i}", model="m", device=("cpu", "auto")[i % 2]) for i in range(8)]
    waves = plan_waves(mixed, {"CPU": 2, "GPU": 1}, may_grow=False)
    found = {pool.teachers: pool.num_gpus for wave in waves for pool in wave}
    for members, gpus in found.items():
        assert {int(name[1:]) % 2 for name in members} == {int(gpus)}
    assert sorted(name for members in found for name in members) == [f"t{i}" for i in range(8)]


def test_who_waits_for_nodes() -> None:
    wanted = [teacher("a", num_gpus=1, accelerator_type="a100"), teacher("b", num_gpus=0)]
    pools = [pool for wave in plan_waves(wanted, _A100, may_grow=True, nodes=[_A100]) for pool in wave]
    (line,) = waiting(pools, [_A100])
    assert line.startswith(
        "a: 1 CPUs and 1 GPUs of type 'a100' (there now: A100) for each of 1 or more actors"
    )
    assert waiting(pools, [_A100, {"CPU": 4.0, "GPU": 1.0, "accelerator_type:a100": 1.0}]) == []


# -- what the configuration says -------------------------------------------------------------------------


def test_explicit_resources_are_honoured() -> None:
    wanted = teacher(
        "t", num_cpus=3, num_gpus=1, accelerator_type="A100", min_actors=2, max_actors=5, threads=2
    )
    cluster = {"CPU": 64.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
    for may_grow in (False, True):
        ((pool,),) = plan_waves([wanted], cluster, may_grow=may_grow)
        assert pool == PoolPlan(("t",), 3.0, 1.0, "A100", 2, 5, 2, 5)


def test_a_maximum_holds_for_each_of_those_that_take_turns() -> None:
    ((pool,),) = plan_waves(teachers(3, num_cpus=3, max_actors=1), {"CPU": 8}, may_grow=False)
    assert (pool.teachers, pool.max_actors) == (("t0", "t1", "t2"), 2)
    (wave,) = plan_waves(teachers(3, num_cpus=3, max_actors=1), {"CPU": 64}, may_grow=False)
    assert [p.max_actors for p in wave] == [1, 1, 1]


def test_small_explicit_actors_share_a_wave() -> None:
    assert shape(plan_waves(teachers(10, num_cpus=0.1), {"CPU": 2}, may_grow=False)) == [10]


def test_several_actors_at_least_share_what_is_there() -> None:
    (wave,) = plan_waves(teachers(2, min_actors=3), {"CPU": 2}, may_grow=False)
    assert [(p.num_cpus, p.min_actors) for p in wave] == [(0.3, 3)] * 2


def test_a_pool_with_a_maximum_leaves_the_rest_to_others() -> None:
    (wave,) = plan_waves([teacher("a", max_actors=1), teacher("b")], {"CPU": 64}, may_grow=False)
    assert [p.max_actors for p in wave] == [1, 6]


# -- too much --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "cluster"),
    [
        ({"num_cpus": 4}, {"CPU": 4}),  # nothing would be left for the light tasks
        ({"num_gpus": 1}, {"CPU": 4}),
        ({"num_gpus": 2}, {"CPU": 4, "GPU": 1}),
        ({"num_cpus": 1, "min_actors": 4}, {"CPU": 4}),
        ({"min_actors": 100}, {"CPU": 2}),
        ({"num_gpus": 0.6, "min_actors": 3}, {"CPU": 8, "GPU": 2}),
    ],
)
def test_more_than_a_machine_has(resources: dict[str, Any], cluster: dict[str, float]) -> None:
    wanted = [*teachers(2), teacher("big", **resources)]
    with pytest.raises(
        ResourceError, match=r"^teacher 'big' asks for .* this machine offers .*; lower"
    ) as refusal:
        plan_waves(wanted, cluster, may_grow=False)
    assert "\n" not in str(refusal.value)
    waves = plan_waves(wanted, cluster, may_grow=True)
    assert names(waves)[-1] == [("big",)], "it waits for new nodes alone"


def test_the_message_says_what_is_there() -> None:
    with pytest.raises(ResourceError) as refusal:
        plan_waves(teachers(1, num_cpus=3, min_actors=2), {"CPU": 4}, may_grow=False)
    assert str(refusal.value) == (
        "teacher 't0' asks for 6 CPUs and 0 GPUs, but this machine offers 3.8 and 0 beside the 0.2 CPUs that light "
        "tasks need; lower its resources or use a larger cluster"
    )


# -- clusters --------------------------------------------------------------------------------------------


def test_an_empty_cluster_that_may_grow() -> None:
    ((pool,),) = plan_waves(teachers(3), {}, may_grow=True)
    assert (pool.teachers, pool.num_cpus, pool.threads) == (("t0", "t1", "t2"), 1.0, 1)
    assert (pool.min_actors, pool.initial_actors) == (1, 1)
    assert pool.max_actors >= 100, "a pool that stays small would never make the cluster grow"


def test_those_that_wait_for_other_gpus_wait_together() -> None:
    wanted = [
        teacher(f"t{i}", num_gpus=1, accelerator_type=kind) for i, kind in enumerate(["A100", "L4", "A100"])
    ]
    assert names(plan_waves(wanted, {"CPU": 2}, may_grow=True)) == [[("t0", "t2"), ("t1",)]]
    mixed = [teacher("g", num_gpus=1), *wanted]
    assert names(plan_waves(mixed, {"CPU": 2}, may_grow=True)) == [[("g",)], [("t0", "t2"), ("t1",)]]


_A100 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:A100": 1.0}
_L4 = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:L4": 1.0}


def test_what_an_autoscaler_may_add_counts() -> None:
    wanted = [teacher("a", num_gpus=1, accelerator_type="A100"), teacher("l"), teacher("m")]
    (wave,) = plan_waves(wanted, {"CPU": 2}, may_grow=True, may_add=[_A100, _A100, _L4, _L4])
    assert [(p.teachers, p.num_gpus, p.initial_actors) for p in wave] == [
        (("a",), 1.0, 1),
        (("l",), 1.0, 1),
        (("m",), 1.0, 1),
    ]
    assert sum(p.max_actors for p in wave) == 4
    ((pool,),) = plan_waves(teachers(9), {"CPU": 2}, may_grow=True, may_add=[_L4, _L4])
    assert (len(pool.teachers), pool.num_gpus, pool.initial_actors, pool.max_actors) == (9, 1.0, 1, 2)


def test_more_than_an_autoscaler_may_add_is_refused() -> None:
    with pytest.raises(ResourceError, match="grown as far as it may"):
        plan_waves(teachers(1, num_gpus=2), {"CPU": 2}, may_grow=True, may_add=[_L4, _L4])
    with pytest.raises(
        ResourceError, match=r"accelerator type 'H100', but this cluster, .* offers A100, L4;"
    ):
        plan_waves(
            teachers(1, num_gpus=1, accelerator_type="H100"), {"CPU": 2}, may_grow=True, may_add=[_A100, _L4]
        )
    with pytest.raises(ResourceError, match="accelerator type 'L4', but this machine offers none;"):
        plan_waves(teachers(1, num_gpus=1, accelerator_type="L4"), {"CPU": 2, "GPU": 1}, may_grow=False)


def test_an_actor_fits_a_node() -> None:
    """Three nodes of 4 CPUs are not one of 12: shares of 2.95 would leave the fourth actor without a place."""
    nodes = [{"CPU": 4.0}] * 3
    (wave,) = plan_waves(teachers(4), {"CPU": 12}, may_grow=True, nodes=nodes)
    assert [p.num_cpus for p in wave] == [2.0] * 4
    ((pool,),) = plan_waves(teachers(1), {"CPU": 12}, may_grow=True, nodes=nodes)
    assert pool.num_cpus == 4.0
    assert shape(plan_waves(teachers(3, num_cpus=3), {"CPU": 12}, may_grow=True, nodes=nodes)) == [3]
    ((pool,),) = plan_waves(teachers(4, num_cpus=3), {"CPU": 12}, may_grow=True, nodes=nodes)
    assert (len(pool.teachers), pool.initial_actors) == (4, 3)
    with pytest.raises(ResourceError):
        plan_waves(teachers(1, num_cpus=5), {"CPU": 12}, may_grow=False, nodes=nodes)


def test_gpus_of_two_nodes_are_not_one_pair() -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0}] * 2
    with pytest.raises(ResourceError):
        plan_waves(teachers(1, num_gpus=2), {"CPU": 16, "GPU": 2}, may_grow=False, nodes=nodes)
    assert shape(plan_waves(teachers(2), {"CPU": 16, "GPU": 2}, may_grow=False, nodes=nodes)) == [2]


@pytest.mark.parametrize(
    ("cpus", "count", "most", "share"),
    [
        ([4, 4, 4], 3, 8, 4.0),
        ([4, 4, 4], 4, 8, 2.0),
        ([4, 4, 4], 7, 8, 1.33),
        ([64, 4], 2, 16, 16.0),
        ([64, 4], 2, 64, 32.0),
        ([0.1], 3, 8, 0.0),
        ([0.15], 3, 8, 0.05),
        ([], 1, 8, 0.0),
    ],
)
def test_equal_share(cpus: list[float], count: int, most: float, share: float) -> None:
    assert equal_share([{"CPU": c} for c in cpus], count, most) == share


def test_equal_share_counts_gpus_where_they_are() -> None:
    nodes = [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert equal_share(nodes, 2, 16, num_gpus=1) == 4.0
    assert equal_share(nodes, 5, 16, num_gpus=1) == 4.0, "more than the GPUs hold wait for another wave"
    assert equal_share(nodes, 4, 16, num_gpus=0.5) == 2.0
    assert equal_share(nodes[:1], 2, 16, num_gpus=1) == 0.0


# -- properties ------------------------------------------------------------------------------------------

_RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "num_cpus": st.sampled_from([0.1, 0.5, 1.0, 2.0, 6.0]),
        "num_gpus": st.sampled_from([0, 0.25, 0.4, 1, 2]),
        "min_actors": st.integers(1, 3),
    },
)
_NODES = st.lists(
    st.fixed_dictionaries(
        {"CPU": st.sampled_from([0.0, 1.0, 2.0, 4.0, 16.0]), "GPU": st.sampled_from([0.0, 1.0, 4.0])}
    ),
    min_size=1,
    max_size=4,
)


@given(wanted=st.lists(_RESOURCES, max_size=12), nodes=_NODES, may_grow=st.booleans())
def test_every_wave_fits_and_every_teacher_has_its_turn(
    wanted: list[dict[str, Any]], nodes: list[dict[str, float]], may_grow: bool
) -> None:
    cluster = {kind: sum(node[kind] for node in nodes) for kind in ("CPU", "GPU")}
    all_teachers = [teacher(f"t{i}", **resources) for i, resources in enumerate(wanted)]
    try:
        waves = plan_waves(all_teachers, cluster, may_grow=may_grow, nodes=nodes)
    except ResourceError:
        assert not may_grow
        return
    served = [name for wave in names(waves) for pool in wave for name in pool]
    assert sorted(served) == sorted(t.name for t in all_teachers)
    assert all(waves)
    for wave in waves:
        fits = all(
            sum(getattr(p, need) * p.min_actors for p in wave) <= there + 1e-6
            for need, there in (
                ("num_cpus", max(cluster["CPU"] - 2 * LIGHT_TASK_CPUS, 0)),
                ("num_gpus", cluster["GPU"]),
            )
        )
        assert fits or (may_grow and len(wave) == 1)
        for pool in wave:
            assert 1 <= pool.min_actors <= pool.initial_actors <= pool.max_actors
            assert pool.num_cpus > 0 and pool.threads >= 1
            if not may_grow:
                assert any(node["CPU"] >= pool.num_cpus and node["GPU"] >= pool.num_gpus for node in nodes)


@given(cpus=st.integers(1, 256), count=st.integers(1, 300))
def test_plain_teachers_fit_any_machine_at_once(cpus: int, count: int) -> None:
    (wave,) = plan_waves(teachers(count), {"CPU": cpus}, may_grow=False)
    assert sum(len(pool.teachers) for pool in wave) == count
    assert sum(p.num_cpus * p.max_actors for p in wave) <= cpus - 2 * LIGHT_TASK_CPUS + 1e-6
    assert sum(p.max_actors for p in wave) >= min(count, cpus), "no CPU without an actor"
