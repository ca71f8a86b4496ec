"""The rewritten student answers and learns like the model itself, for less work; what cannot be rewritten runs as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from muki_ray.student import lean
from muki_ray.student.lean import LeanStudent
from muki_ray.teachers import train_mode
from muki_ray.teachers.capture import UncapturableError
from tests import tiny

LABELS = ["business", "sport", "film"]
# what every one of these must be rewritten for
LEAN = ["bert", "roberta", "xlm-roberta", "mpnet", "electra", "distilbert", "albert"]


def model_of(kind: str, **changes: Any) -> Any:
    """A tiny classifier whose weights are large enough for its answers to differ."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny.config(kind, LABELS, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def batch(rows: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    return dict(tiny.tokenizer()(tiny.texts(rows, seed), padding=True, return_tensors="pt"))


def student(kind: str = "bert", alone: bool = True, **changes: Any) -> LeanStudent:
    return LeanStudent(model_of(kind, **changes), batch(2, seed=5), alone=alone)


def gradients(module: torch.nn.Module, model: torch.nn.Module, inputs: Any) -> dict[str, torch.Tensor | None]:
    module.zero_grad()
    answer = module(**inputs)
    logits = answer if isinstance(answer, torch.Tensor) else answer.logits
    logits.square().sum().backward()
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", sorted(tiny.SIZES))
def test_it_answers_and_learns_like_the_model(kind: str, alone: bool) -> None:
    one, plain = student(kind, alone), model_of(kind).eval()
    if kind in LEAN:
        assert one.lean
    one.eval()
    for rows, seed in ((4, 0), (1, 3), (7, 1), (2, 2), (1, 3)):  # one row: not the graph's
        inputs = batch(rows, seed)
        with torch.no_grad():
            torch.testing.assert_close(one(**inputs), plain(**inputs).logits, atol=1e-5, rtol=1e-5)
        expected = gradients(plain, plain, inputs)
        for name, found in gradients(one, one.model, inputs).items():
            wanted = expected[name]
            if wanted is None:
                assert found is None or not found.any(), name
            else:
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", LEAN)
def test_dropout_is_on_in_train_mode_only(kind: str) -> None:
    one, inputs = student(kind).train(), batch()
    torch.manual_seed(1)
    first, second = one(**inputs), one(**inputs)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(one(**inputs), first)
    one.eval()
    assert torch.equal(one(**inputs), one(**inputs))


def test_the_mean_under_dropout_is_the_models() -> None:
    """Same rates at the same places: the spread of the answers agrees with the model's own."""
    one, plain, inputs = student().train(), model_of("bert").train(), batch(2)
    torch.manual_seed(0)
    with torch.no_grad():
        mine = torch.stack([one(**inputs) for _ in range(400)])
        theirs = torch.stack([plain(**inputs).logits for _ in range(400)])
    spread = theirs.std(0)
    assert (spread > 0).all()
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * spread / 400**0.5 * 2**0.5).all()
    torch.testing.assert_close(mine.std(0), spread, atol=0.0, rtol=0.3)


def test_the_last_layer_works_for_the_token_that_is_read() -> None:
    one, inputs = student().eval(), batch(8)

    def work(call: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(**inputs)
        counts = counter.get_flop_counts()["Global"]
        return sum(count for op, count in counts.items() if str(op) in ("aten.mm", "aten.addmm"))

    tokens, hidden = inputs["input_ids"].numel(), 16
    unread = tokens - 8
    # queries, output projection and both feed-forward products of the last layer
    saved = 2 * unread * (2 * hidden * hidden + 2 * hidden * 32)
    assert work(one.model) - work(one) >= saved


@pytest.mark.parametrize("rows", [(4, 4), (4, 1), (1, 4), (1, 1)])
def test_gradients_accumulate_and_are_cleared(rows: tuple[int, int]) -> None:
    one, plain = student().eval(), model_of("bert").eval()
    one.zero_grad()
    for seed, count in enumerate(rows):
        one(**batch(count, seed)).sum().backward()
        plain(**batch(count, seed)).logits.sum().backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-5, rtol=1e-5, msg=name)
    one.zero_grad()
    left = [p.grad for p in one.parameters() if p.grad is not None]
    assert len(left) == len(one.kept) > 0
    assert not any(gradient.any() for gradient in left)


def test_gradients_that_others_average_are_not_kept() -> None:
    assert not student(alone=False).kept


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UncapturableError("no graph")

    monkeypatch.setattr(lean, "capture_once", refuse)
    one, plain, inputs = student().eval(), model_of("bert").eval(), batch()
    assert not one.lean
    assert torch.equal(one(**inputs), plain(**inputs).logits)
    found = gradients(one, one.model, inputs)
    for name, wanted in gradients(plain, plain, inputs).items():
        assert wanted is None or torch.equal(found[name], wanted), name  # type: ignore[arg-type]


def test_a_graph_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_mode, "attention", lambda query, *_, **__: query * 1.5)
    assert not student().lean


def test_a_graph_that_does_not_run_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_mode, "attention", lambda _query, _key, value, *_, **__: value)
    assert not student().lean


def test_a_graph_without_gradients_for_a_parameter_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_parameters_as_inputs", lambda captured, _: (captured, []))
    assert not student().lean


def test_other_inputs_than_the_probes_take_the_models_way() -> None:
    one, inputs = student().eval(), batch()
    alone = {"input_ids": inputs["input_ids"]}
    assert torch.equal(one(**alone), one.model(**alone).logits)


def test_the_models_mode_stays() -> None:
    model = model_of("bert").eval()
    LeanStudent(model, batch(2), alone=True)
    assert not model.training
