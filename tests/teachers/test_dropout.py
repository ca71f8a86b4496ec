"""Monte-Carlo dropout against a plain reference: the unmodified model, one row, one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from muki_ray.errors import TeacherError
from muki_ray.teachers import dropout
from muki_ray.teachers.capture import UncapturableError
from muki_ray.teachers.dropout import McDropout
from muki_ray.teachers.seeds import derived_seed
from tests import tiny

LABELS = ["a", "b", "c"]
K = 3
TOKENIZER = tiny.tokenizer()
PROBE = ["one", "the team wins the cup match", "a new film"]
ROWS = ["good", "the bank profit falls", "song of the old actor", "in a cup match the team wins", "law vote"]


def layered(base: str, layer: str, sites: Sequence[str], *head: str, layers: int = 2) -> list[str]:
    return [
        f"{base}.embeddings.dropout",
        *(f"{base}.{layer}.{i}.{s}" for i in range(layers) for s in sites),
        *head,
    ]


BERT_LIKE = ("attention.output.dropout", "output.dropout")
TWICE = ("classifier.dropout", "classifier.dropout@1")  # heads that drop before and after their hidden layer
# the hidden dropout sites of each architecture, in the order they run
EXPECTED: dict[str, list[str]] = {
    "bert": layered("bert", "encoder.layer", BERT_LIKE, "dropout", layers=3),
    "roberta": layered("roberta", "encoder.layer", BERT_LIKE, *TWICE),
    "xlm-roberta": layered("roberta", "encoder.layer", BERT_LIKE, *TWICE),
    "mpnet": layered("mpnet", "encoder.layer", ("attention.dropout", "output.dropout"), *TWICE),
    "distilbert": layered("distilbert", "transformer.layer", ("ffn.dropout",), "dropout"),
    "deberta-v2": layered("deberta", "encoder.layer", BERT_LIKE, "dropout"),
    "modernbert": ["model.embeddings.drop", "model.layers.0.mlp.drop", "model.layers.1.mlp.drop", "drop"],
    "electra": layered("electra", "encoder.layer", BERT_LIKE, *TWICE),
    # one layer that is used twice
    "albert": ["albert.embeddings.dropout", "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.output_dropout",
               "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.output_dropout@1", "dropout"],
    "gpt2": ["transformer.drop", "transformer.h.0.attn.resid_dropout", "transformer.h.0.mlp.dropout",
             "transformer.h.1.attn.resid_dropout", "transformer.h.1.mlp.dropout"],
    # no dropout on hidden states: put at the end of each residual branch, when a rate is set
    "llama": ["model.layers.0.self_attn", "model.layers.0.mlp", "model.layers.1.self_attn", "model.layers.1.mlp"],
    "qwen2": ["model.layers.0.self_attn", "model.layers.0.mlp", "model.layers.1.self_attn", "model.layers.1.mlp"],
}  # fmt: skip
NO_DROPOUT = ["llama", "qwen2"]
RATE = 0.2  # for those


@cache
def _built(kind: str) -> Any:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(tiny.config(kind, LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


def build(kind: str = "bert") -> Any:
    """A fresh copy: the engine sets rates on the model that it gets."""
    return copy.deepcopy(_built(kind))


def tokens(texts: Sequence[str], pad_to: int | None = None) -> dict[str, torch.Tensor]:
    padding: Any = {"padding": "max_length", "max_length": pad_to} if pad_to else {"padding": True}
    return dict(TOKENIZER(list(texts), return_tensors="pt", **padding))


def engine(kind_or_model: Any = "bert", **changes: Any) -> McDropout:
    settings: dict[str, Any] = {
        "samples": K, "masks": "per_sample", "layers": "all", "rate": None, "seed_key": (0, "teacher"), "name": "t",
    }  # fmt: skip
    if kind_or_model in NO_DROPOUT:
        settings["rate"] = RATE
    model = build(kind_or_model) if isinstance(kind_or_model, str) else kind_or_model
    return McDropout(model, tokens(PROBE), **{**settings, **changes})


def run(mc: McDropout, texts: Sequence[str], pad_to: int | None = None, **place: int) -> torch.Tensor:
    return mc.logits(tokens(texts, pad_to), **{"shard": 0, "batch": 0, **place})


def reference(model: Any, masks: dict[str, torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    """`[K+1, N, C]`: one row and one sample per call, no padding, masks multiplied by forward hooks."""
    modules = dict(model.named_modules())
    samples = len(next(iter(masks.values())))
    calls: dict[str, int] = {}
    of_module: dict[str, dict[int, torch.Tensor]] = {}
    for name, mask in masks.items():
        path, _, call = name.partition("@")
        of_module.setdefault(path, {})[int(call or 0)] = mask

    def times(path: str, k: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            calls[path] = calls.get(path, -1) + 1
            if calls[path] not in of_module[path]:
                return output
            mask = of_module[path][calls[path]][k]
            return (output[0] * mask, *output[1:]) if isinstance(output, tuple) else output * mask

        return hook

    rows = []
    for k in range(samples):
        handles = [modules[path].register_forward_hook(times(path, k)) for path in of_module]
        answers = []
        for text in texts:
            calls.clear()
            with torch.no_grad():
                answers.append(model(**tokens([text])).logits)
        rows.append(torch.cat(answers))
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def count_rows(module: nn.Module) -> list[int]:
    """Rows that come out of every later call of this module."""
    seen: list[int] = []

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(len(output[0] if isinstance(output, tuple) else output))

    module.register_forward_hook(hook)
    return seen


# -- the same numbers as the plain reference -----------------------------------------------------------------


def test_every_tiny_architecture_is_covered() -> None:
    assert set(EXPECTED) == set(tiny.SIZES)


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_sample_of_every_row_equals_the_reference(kind: str) -> None:
    mc = engine(kind)
    assert (mc.mode, mc.uncaptured) == ("fan-out", None)
    assert list(mc.masks) == EXPECTED[kind]
    got = run(mc, ROWS)
    assert got.shape == (K + 1, len(ROWS), len(LABELS))
    assert got.dtype == torch.float32
    close(got, reference(build(kind), mc.masks, ROWS))
    assert (got.std(dim=0) > 1e-3).all(), "the samples differ, so equality above says something"


@pytest.mark.parametrize("kind", [kind for kind in EXPECTED if kind not in NO_DROPOUT])
def test_a_model_that_cannot_be_captured_answers_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise UncapturableError("a model's code decides by its values")

    captured = run(engine(kind), ROWS)
    monkeypatch.setattr(dropout, "capture_once", refuse)
    mc = engine(kind)
    assert (mc.mode, mc.uncaptured) == ("repeat", "a model's code decides by its values")
    assert list(mc.masks) == EXPECTED[kind]
    close(run(mc, ROWS), captured)


@pytest.mark.parametrize("kind", EXPECTED)
def test_sample_0_is_the_plain_model(kind: str) -> None:
    mc = engine(kind)
    with torch.no_grad():
        close(run(mc, ROWS)[0], build(kind)(**tokens(ROWS)).logits)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_row_does_not_depend_on_its_company(kind: str) -> None:
    mc = engine(kind)
    together = run(mc, ROWS)
    close(run(mc, ROWS[::-1]).flip(1), together)
    close(run(mc, ROWS, pad_to=31), together)
    close(run(mc, ROWS[:2]), together[:, :2])
    for i, row in enumerate(ROWS):
        close(run(mc, [row]), together[:, i : i + 1])


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_in_the_last_layers_only(kind: str, layers: int) -> None:
    mc = engine(kind, layers=layers)
    full = engine(kind)
    depth = tiny.config(kind, LABELS).num_hidden_layers
    # of the names, those of earlier layers and of the embeddings are gone; the masks that stay are the same
    early = {f".{i}." for i in range(depth - layers)}
    late = [n for n in EXPECTED[kind] if "embeddings" not in n and n != "transformer.drop"]
    kept = [n for n in late if not any(part in n for part in early)]
    if kind == "albert":
        kept = late[-layers - 1 :]
    assert list(mc.masks) == kept
    assert all(torch.equal(mc.masks[name], full.masks[name]) for name in kept)
    close(run(mc, ROWS), reference(build(kind), mc.masks, ROWS))
    for i, row in enumerate(ROWS[:3]):
        close(run(mc, [row]), run(mc, ROWS)[:, i : i + 1])


def test_no_samples_is_one_plain_pass() -> None:
    mc = engine("bert", samples=0)
    got = run(mc, ROWS)
    assert (mc.masks, got.shape) == ({}, (1, len(ROWS), 3))
    close(got[0], build()(**tokens(ROWS)).logits.detach())


@pytest.mark.parametrize("kind", NO_DROPOUT)
def test_no_samples_needs_no_dropout(kind: str) -> None:
    mc = engine(kind, samples=0)
    for i, row in enumerate(ROWS):
        close(run(mc, [row]), run(mc, ROWS)[:, i : i + 1])


def test_low_precision_stays_near() -> None:
    exact, low = run(engine("bert"), ROWS), run(engine(build("bert").to(torch.bfloat16)), ROWS)
    assert low.dtype == torch.float32
    assert (exact - low).abs().mean() < 0.02 * exact.abs().mean()


# -- masks ---------------------------------------------------------------------------------------------------


def test_masks_are_a_function_of_seed_key_sample_and_site() -> None:
    masks, again = engine().masks, engine().masks
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    for other in ((1, "teacher"), (0, "another")):
        changed = engine(seed_key=other).masks
        assert all(not torch.equal(masks[name][1:], changed[name][1:]) for name in masks)
    rows = torch.cat([mask[1:] for mask in engine(rate=0.5).masks.values()])  # [sites * K, H]
    assert len(rows.unique(dim=0)) == len(rows), "no two samples or sites share a mask"


def test_rate() -> None:
    rates = {name: 1 - 1 / mask.max().item() for name, mask in engine("distilbert", samples=40).masks.items()}
    assert rates["distilbert.embeddings.dropout"] == pytest.approx(0.1)
    assert rates["dropout"] == pytest.approx(0.2), "each site keeps the model's own rate"
    mc = engine("distilbert", rate=0.4)
    assert {round(mask.max().item(), 6) for mask in mc.masks.values()} == {round(1 / 0.6, 6)}
    close(run(mc, ROWS), reference(build("distilbert"), mc.masks, ROWS))


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
def test_a_tiny_rate_gives_nearly_the_plain_answer(masks: str) -> None:
    got = run(engine(rate=1e-4, samples=16, masks=masks), ROWS)
    gap = (got[1:] - got[0]).abs()
    assert gap.median() < 1e-2
    usual = run(engine(samples=16, masks=masks), ROWS)
    assert gap.mean() < 0.1 * (usual[1:] - usual[0]).abs().mean()


def test_derived_seeds() -> None:
    assert derived_seed(0, "a", 1) == derived_seed(0, "a", 1)
    seeds = [
        derived_seed(*parts)
        for parts in ((0, "a", 1), (0, "a", 2), (1, "a", 0), (0, "a1"), (0, "a", "11"), (0, "a", 1, 1))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


# -- refusals ------------------------------------------------------------------------------------------------


def test_more_layers_than_there_are() -> None:
    with pytest.raises(
        TeacherError, match=r"^teacher 't' has 3 layers, got dropout.layers: 4; use fewer or all$"
    ):
        engine("bert", layers=4)
    assert engine("bert", layers=3).mode == "fan-out"


def test_classical_masks_in_the_layers_of_a_model_that_shares_them() -> None:
    with pytest.raises(TeacherError, match=r"its layers are not a plain list.*use layers: all$"):
        engine("albert", layers=1, masks="per_element")


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
@pytest.mark.parametrize("kind", NO_DROPOUT)
def test_a_model_without_dropout_modules(kind: str, masks: str) -> None:
    message = r"dropout.*; set method.dropout.rate \(such as 0.1\), or use method.score: entropy with method.samples: 0$"
    with pytest.raises(TeacherError, match=message):
        engine(build(kind), masks=masks)
    assert (run(engine(kind, masks=masks), ROWS).std(dim=0) > 1e-3).all(), "as the message says"


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
def test_rates_of_0(masks: str) -> None:
    config = tiny.config("bert", LABELS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(
        TeacherError,
        match=r"dropout.*set method.dropout.rate \(such as 0.1\), or use method.score: entropy with",
    ):
        engine(copy.deepcopy(model), masks=masks)
    assert engine(model, masks=masks, rate=0.1).mode in ("fan-out", "per_element"), "as the message says"


def test_dropout_on_attention_alone_is_not_enough_for_masks_per_sample() -> None:
    config = tiny.config("bert", LABELS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1)
    model = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(TeacherError, match="no dropout reaches its hidden states, so"):
        engine(copy.deepcopy(model))
    assert engine(model, masks="per_element").mode == "per_element"


@pytest.mark.parametrize("samples", [1, 3])
def test_samples_that_are_all_equal(samples: int) -> None:
    model = build("bert")
    nn.init.zeros_(model.classifier.weight)  # nothing that happens below reaches the answer
    with pytest.raises(TeacherError, match=rf"its {samples} Monte-Carlo samples are all equal"):
        engine(model, samples=samples)


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_model(samples: int, bad: float) -> None:
    model = build("bert")
    nn.init.constant_(model.classifier.bias, bad)
    with pytest.raises(TeacherError, match="teacher 't' answers NaN or infinity on a plain text"):
        engine(model, samples=samples)


# -- classical dropout ---------------------------------------------------------------------------------------


def test_per_element_is_the_model_in_train_mode() -> None:
    mc = engine(masks="per_element")
    mc.classical.graph = None  # whose random stream is another: test_train_mode.py
    got = run(mc, ROWS, shard=2, batch=5)
    model = build().eval()
    with torch.no_grad():
        close(got[0], model(**tokens(ROWS)).logits)
        model.train()
        for k in range(1, K + 1):
            torch.manual_seed(derived_seed(0, "teacher", 2, 5, k))
            close(got[k], model(**tokens(ROWS)).logits)
    assert (got.std(dim=0) > 1e-3).all()


def test_per_element_draws_the_same_for_the_same_shard_and_batch() -> None:
    mc = engine(masks="per_element")
    first = run(mc, ROWS, shard=1, batch=2)
    assert torch.equal(run(mc, ROWS, shard=1, batch=2), first)
    assert torch.equal(run(engine(masks="per_element"), ROWS, shard=1, batch=2), first)
    for place in ({"shard": 2, "batch": 2}, {"shard": 1, "batch": 3}):
        other = run(mc, ROWS, **place)
        assert torch.equal(other[0], first[0])
        assert not torch.equal(other[1:], first[1:])
    assert not torch.equal(
        run(engine(masks="per_element", seed_key=(1, "teacher")), ROWS, shard=1, batch=2)[1:], first[1:]
    )


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
def test_the_global_random_state_is_left_alone(masks: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run(engine(masks=masks), ROWS)
    assert torch.equal(torch.get_rng_state(), before)


def test_per_element_in_the_last_layers_only() -> None:
    mc = engine("bert", masks="per_element", layers=1)
    training: dict[str, bool] = {}
    for name, module in mc.model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda m, a, o, name=name: training.update({name: m.training}))
    run(mc, ROWS)
    assert {name for name, on in training.items() if on} == {
        "bert.encoder.layer.2.attention.output.dropout", "bert.encoder.layer.2.output.dropout", "dropout",
    }  # fmt: skip
    assert mc.model.bert.encoder.layer[2].attention.self.dropout in mc.classical.stochastic


def test_eval_mode_returns_after_an_exception() -> None:
    mc = engine(masks="per_element")
    mc.classical.graph = None

    def fail(module: nn.Module, *_: Any) -> None:
        if module.training:
            raise KeyboardInterrupt

    handle = mc.model.dropout.register_forward_hook(fail)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        run(mc, ROWS)
    handle.remove()
    assert not any(module.training for module in mc.model.modules())
    assert torch.equal(torch.get_rng_state(), before)


# -- what is left behind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("settings", [{}, {"layers": 1}, {"masks": "per_element"}])
@pytest.mark.parametrize("kind", ["bert", "electra", "gpt2"])
def test_the_model_is_as_it_was(kind: str, settings: dict[str, Any], fails: bool) -> None:
    model = build(kind)
    mc = engine(model, **settings)
    if fails:
        unknown = tokens(ROWS)["input_ids"] + 10_000
        with pytest.raises(IndexError):
            mc.logits({**tokens(ROWS), "input_ids": unknown}, shard=0, batch=0)
    else:
        run(mc, ROWS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**tokens(ROWS)).logits, build(kind)(**tokens(ROWS)).logits)
