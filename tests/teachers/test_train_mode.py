"""The graph in train mode draws from the model's own law, and is the model where nothing is dropped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from muki_ray.teachers import train_mode
from muki_ray.teachers.capture import UncapturableError
from muki_ray.teachers.classical import Classical
from muki_ray.teachers.train_mode import TrainMode
from tests import tiny

TOKENIZER = tiny.tokenizer()
TEXTS = ["good", "in a cup match the team wins"]
COPIES, FORWARDS = 200, 10
KINDS = ["bert", "roberta", "mpnet", "electra", "distilbert", "albert", "deberta-v2", "modernbert", "gpt2"]
# what every one of these must be rewritten for
GRAPHS = ["bert", "roberta", "mpnet", "electra", "distilbert", "albert"]


def tokens(texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(TOKENIZER(texts, padding=True, return_tensors="pt"))


def build(kind: str) -> Any:
    """A tiny classifier whose answers differ, with a rate that shows."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny.config(kind, ["a", "b", "c"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model.eval()


def classical(kind: str) -> Classical:
    return Classical(build(kind), tokens(TEXTS), _captured(kind), "all", 0.3, "t")


def _captured(kind: str) -> Any:
    from muki_ray.teachers.capture_cache import capture_once

    try:
        return capture_once(build(kind), tokens(TEXTS))
    except UncapturableError:
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_law_of_the_model_in_train_mode(kind: str) -> None:
    drawn = classical(kind)
    plain = copy.deepcopy(drawn)
    plain.graph = None
    assert drawn.graph is not None or kind not in GRAPHS
    inputs = tokens([text for text in TEXTS for _ in range(COPIES)])  # each copy has masks of its own
    with torch.inference_mode():
        found, expected = (
            one.logits(inputs, FORWARDS, (kind,)).unflatten(1, (len(TEXTS), COPIES)) for one in (drawn, plain)
        )
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    mine, theirs = (one[1:].transpose(1, 2).flatten(0, 1) for one in (found, expected))  # [2000, rows, C]
    count = len(mine)
    assert (mine.std(0) > 1e-3).all()
    error = ((mine.var(0) + theirs.var(0)) / count).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    # of a deviation, about 1 / sqrt(2 n) of it where tails are normal; these are heavier
    assert torch.allclose(mine.std(0) / theirs.std(0), torch.ones(()), atol=0.12)


def test_copies_of_a_row_in_one_forward_differ() -> None:
    with torch.inference_mode():
        logits = classical("bert").logits(tokens([TEXTS[0]] * 8), 1, (0,))[1]
    assert len(logits[:, 0].unique()) == 8


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS])
def test_a_batch_that_the_graph_does_not_take_goes_to_the_model(texts: list[str]) -> None:
    one = classical("bert")
    assert one.graph is not None
    assert one.graph.takes(tokens(texts)) is (len(texts) > 1)
    with torch.inference_mode():
        logits = one.logits(tokens(texts), 2, (0,))
        assert logits.shape == (3, len(texts), 3)
        torch.testing.assert_close(logits[0], one.model(**tokens(texts)).logits, atol=1e-5, rtol=1e-5)


def test_the_model_is_in_eval_mode_afterwards() -> None:
    model = build("bert")
    TrainMode(model, tokens(TEXTS))
    assert not any(module.training for module in model.modules())
    nn.init.constant_(model.classifier.bias, float("nan"))
    TrainMode(model, tokens(TEXTS))  # equal to the model, broken as that is
    with pytest.raises(UncapturableError):
        TrainMode(model, {name: value[:, :1] for name, value in tokens(TEXTS).items()})
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        (lambda query, *_, **__: query * 1.5, "its graph answers otherwise"),
        (lambda _query, _key, value, *_, **__: value[:, :, :1, :1], "its graph does not run"),
    ],
)
def test_a_graph_that_is_not_the_model_is_not_used(
    attention: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_mode, "attention", attention)
    with pytest.raises(UncapturableError, match=reason):
        TrainMode(build("bert"), tokens(TEXTS))
    assert classical("bert").graph is None
