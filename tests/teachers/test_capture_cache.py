from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from muki_ray.teachers import capture_cache
from muki_ray.teachers.capture import capture
from muki_ray.teachers.capture_cache import capture_once
from muki_ray.teachers.program import compile_program
from tests.teachers.test_dropout import EXPECTED, build, tokens

PROBE = tokens(["one", "the team wins the cup match"])


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Models that were traced, in order; nothing is kept from other tests."""
    models: list[Any] = []

    def counted(model: Any, probe: Any) -> Any:
        models.append(type(model).__name__)
        return capture(model, probe)

    monkeypatch.setattr(capture_cache, "capture", counted)
    monkeypatch.setattr(capture_cache, "_kept", type(capture_cache._kept)())
    yield models


def answer(model: Any) -> torch.Tensor:
    program = compile_program(capture_once(model, PROBE), []).shared
    with torch.inference_mode():
        (logits,) = program(*PROBE["input_ids"].shape, *PROBE.values())
    return torch.as_tensor(logits)


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_second_model_is_not_traced_and_answers_with_its_own_weights(
    kind: str, traced: list[Any]
) -> None:
    models = [build(kind), build(kind)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.5)
    models[1].config._name_or_path = "another/folder"
    models[1].config.id2label = {i: f"label {i}" for i in range(models[1].config.num_labels)}
    found = [answer(model) for model in models]
    assert len(traced) == 1
    with torch.inference_mode():
        for model, logits in zip(models, found, strict=True):
            torch.testing.assert_close(logits, model(**PROBE).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*found, atol=1e-3)


def test_what_a_graph_depends_on_is_traced_anew(traced: list[Any]) -> None:
    plain = build("bert")
    capture_once(plain, PROBE)
    changes: list[Any] = [build("bert"), build("bert"), build("bert"), build("bert")]
    changes[0].dropout.p = 0.37
    changes[1].train()
    changes[2].config.num_attention_heads = 1
    changes[3].double()
    for model in changes:
        capture_once(model, PROBE)
    capture_once(plain, tokens(["the team", "the team wins the cup match today"]))
    capture_once(plain, {"input_ids": PROBE["input_ids"]})
    assert len(traced) == 1 + len(changes) + 2
    capture_once(build("bert"), PROBE)
    assert len(traced) == 1 + len(changes) + 2


def test_everyone_has_a_graph_of_their_own(traced: list[Any]) -> None:
    model = build("bert")
    first, second = capture_once(model, PROBE), capture_once(model, PROBE)
    nodes = len(second.graph.nodes)
    first.graph.erase_node(next(node for node in reversed(first.graph.nodes) if node.op == "output"))
    assert len(second.graph.nodes) == nodes == len(capture_once(model, PROBE).graph.nodes)
    assert not set(first.graph.nodes) & set(second.graph.nodes)
    assert set(second.constants) | set(second.inputs.values()) == {
        node for node in second.graph.nodes if node.op == "placeholder"
    }


def test_no_model_is_kept_alive_and_few_graphs_are(
    traced: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_cache, "_MOST", 2)
    model = build("bert")
    weight = weakref.ref(model.classifier.weight)
    capture_once(model, PROBE)
    del model
    gc.collect()
    assert weight() is None
    for kind in ("roberta", "bert", "distilbert", "bert", "roberta"):
        capture_once(build(kind), PROBE)
    # bert is asked for often enough to stay, roberta is not
    assert len(traced) == len(["bert", "roberta", "distilbert", "roberta"])
