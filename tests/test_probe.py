"""Short looks at teachers on a real Ray: who is looked at, who finds no place, what cannot be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muki_ray import probe as probe_module
from muki_ray.config import IntegrateConfig
from muki_ray.errors import UserError
from muki_ray.planning import PoolPlan
from muki_ray.probe import Crew, probe
from muki_ray.store import RunFolder
from muki_ray.tasks import ScoringTask, scoring_task
from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
from tests import runs, tiny

NAMES = ("one", "two", "three")


def pool(teachers: tuple[str, ...], cpus: float = 1.0, actors: int = 1) -> PoolPlan:
    return PoolPlan(teachers, cpus, 0.0, None, 1, actors, 1, actors)


def tasks_of(wanted: IntegrateConfig) -> dict[str, ScoringTask]:
    wanted = settled(wanted)
    folder = RunFolder(wanted.output)
    specs, space, _ = inspect_all(wanted)
    corpora = read_corpora(wanted, folder, space)
    return {spec.name: scoring_task(spec.resolved(False), wanted.method, corpora, folder) for spec in specs}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScoringTask]:
    root = runs.models(tmp_path_factory.mktemp("models"))
    return tasks_of(runs.config(root, root / "run", runs.corpus(root / "corpus.parquet", 16), NAMES))


def check(found: dict[str, Any], names: tuple[str, ...]) -> None:
    assert found.keys() == set(names)
    for pace in found.values():
        assert min(pace.start_s, pace.load_s, pace.rows_per_s, pace.memory_mib) > 0


@pytest.mark.parametrize(
    ("count", "actors", "expected"),
    [(1, 1, [[0]]), (1, 3, [[0], [0], [0]]), (3, 2, [[0, 2], [1, 0]]), (3, 1, [[0, 1, 2]]), (2, 3, [[0], [1], [0]])],
)  # fmt: skip
def test_between_them_the_actors_look_at_all_teachers(
    count: int, actors: int, expected: list[list[int]]
) -> None:
    crew = Crew(pool(("a",)), list(range(count)), actors)  # type: ignore[arg-type]
    assert [crew.of_actor(place) for place in range(actors)] == expected


def test_teachers_in_turn_beside_one_that_has_its_own_actors(
    tasks: dict[str, ScoringTask], ray_session: None
) -> None:
    crews = [
        Crew(pool(("one", "two"), actors=1), [tasks["one"], tasks["two"]], 1),
        Crew(pool(("three",), actors=2), [tasks["three"]], 2),
    ]
    check(probe(crews, tiny.texts(16), None), NAMES)


def test_who_finds_no_place_comes_after_the_others(
    tasks: dict[str, ScoringTask], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "_GRACE_S", 1.0)
    crews = [Crew(pool((name,), cpus=3.0), [tasks[name]], 1) for name in ("one", "two")]
    check(probe(crews, tiny.texts(16), None), ("one", "two"))


def test_who_never_finds_a_place_has_no_pace(
    tasks: dict[str, ScoringTask], ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "_GRACE_S", 1.0)
    monkeypatch.setattr(probe_module, "_PATIENCE_S", 30.0)
    crews = [Crew(pool((name,), cpus=cpus), [tasks[name]], 1) for name, cpus in (("one", 1.0), ("two", 99.0))]
    check(probe(crews, tiny.texts(16), None), ("one",))


def test_a_teacher_that_cannot_be_loaded(ray_session: None, tmp_path: Path) -> None:
    """The user reads what the loader says, not what Ray says of it."""
    gone = tiny.classifier(tmp_path / "gone", ["a", "b"])
    path = runs.corpus(tmp_path / "corpus.parquet", 8)
    wanted = runs.config(tmp_path, tmp_path / "run", path, ("gone",), student={"model": str(gone)})
    task = tasks_of(wanted)["gone"]
    (gone / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="gone"):
        probe([Crew(pool(("gone",)), [task], 1)], tiny.texts(8), None)
