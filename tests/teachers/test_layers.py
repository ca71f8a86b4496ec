"""Which layer a call belongs to, by names."""

from __future__ import annotations

from muki_ray.teachers.layers import LayerNumbers


def call(path: str, count: int = 0) -> tuple[str, str]:
    return path, f"{path}@{count}"


def test_a_list_of_layers() -> None:
    calls = [
        call("m.emb"),
        *(call(f"m.layer.{i}") for i in range(3)),
        call("m.layer.0.mlp"),
        call("m.pooler"),
    ]
    numbers = LayerNumbers(calls, 3)
    assert numbers.known
    assert numbers.of([call("m"), call("m.layer.2"), call("m.layer.2.mlp")]) == 2
    assert numbers.of([call("m"), call("m.pooler")]) is None


def test_other_lists_of_another_length_are_no_layers() -> None:
    calls = [call(f"m.layer.{i}") for i in range(3)] + [call(f"m.layer.0.heads.{i}") for i in range(2)]
    assert LayerNumbers(calls, 3).of([call("m.layer.0"), call("m.layer.0.heads.1")]) == 0


def test_shared_layers_are_numbered_by_call() -> None:
    calls = [call("m.group.layers.0", i) for i in range(2)] + [
        call("m.group.layers.0.mlp", i) for i in range(2)
    ]
    numbers = LayerNumbers(calls, 2)
    assert numbers.of([call("m.group.layers.0", 1), call("m.group.layers.0.mlp", 1)]) == 1


def test_what_cannot_be_told_apart() -> None:
    two = [call(f"a.{i}") for i in range(2)] + [call(f"b.{i}") for i in range(2)]
    assert not LayerNumbers(two, 2).known
    assert not LayerNumbers([call("m.x")], None).known
    assert not LayerNumbers([], 4).known
