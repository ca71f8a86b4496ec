"""No work that the answer does not need: counted in operations, on real architectures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from muki_ray.teachers import program
from muki_ray.teachers.capture import capture, op_name
from muki_ray.teachers.reading import Reading, find_reading
from tests import tiny
from tests.teachers.test_dropout import EXPECTED, LABELS, ROWS, build, engine, tokens

LONG = [" ".join(ROWS * 3)] * 2  # many tokens, so that one of them is little


def flops(action: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        action()
    return int(counter.get_total_flops())


def engine_flops(kind: str, **settings: Any) -> int:
    mc, inputs = engine(kind, **settings), tokens(LONG)
    return flops(lambda: mc.run(inputs, shard=0, batch=0))


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_last_layer_runs_for_the_token_that_is_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = engine_flops(kind, samples=0)
    monkeypatch.setattr(program, "find_reading", lambda captured: Reading())
    whole = engine_flops(kind, samples=0)
    depth = tiny.config(kind, LABELS).num_hidden_layers
    # of the last layer's products at most half is left: keys, values, and perhaps fused queries
    assert read < whole * (depth - 0.5) / depth


@pytest.mark.parametrize("kind", EXPECTED)
def test_samples_of_the_last_layer_cost_next_to_nothing(kind: str) -> None:
    one = engine_flops(kind, samples=0)
    extra = engine_flops(kind, samples=8, layers=1) - one
    assert 0 < extra < 8 * 0.05 * one


@pytest.mark.parametrize("kind", ["bert", "albert", "llama"])
def test_what_lies_before_the_first_site_runs_once(kind: str) -> None:
    """Beyond the first pass, a sample of all layers costs at most what the engine's own pass costs."""
    one, few, many = (engine_flops(kind, samples=k) for k in (0, 2, 10))
    each = (many - few) / 8
    assert 0 < each <= one
    assert engine_flops(kind, samples=10, layers=1) < few


def test_other_readers_keep_all_tokens() -> None:
    """A head that takes the mean of all tokens needs all."""
    config = tiny.config("modernbert", LABELS, classifier_pooling="mean")
    model = AutoModelForSequenceClassification.from_config(config).eval()
    captured = capture(model, tokens(["one", "the team wins the cup match"]))
    assert find_reading(captured).narrow == {}


def test_keys_and_values_stay_whole() -> None:
    captured = capture(build("bert"), tokens(["one", "the team wins the cup match"]))
    reading = find_reading(captured)
    assert reading.position == 0
    attentions = [n for n in captured.graph.nodes if op_name(n) == "scaled_dot_product_attention"]
    assert [node in reading.narrow for node in attentions] == [False, False, True]
    query, key, value = attentions[-1].args[:3]
    assert (query in reading.narrow, key in reading.narrow, value in reading.narrow) == (True, False, False)


def test_the_last_token_of_each_row() -> None:
    captured = capture(build("gpt2"), tokens(["one", "the team wins the cup match"]))
    position = find_reading(captured).position
    assert isinstance(position, torch.fx.Node)
    assert op_name(position) == "argmax"
