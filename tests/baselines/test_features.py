"""Features: means over real tokens, the same whatever the batch; teachers that only read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from muki_ray.baselines.features import (
    FeatureNetwork,
    FeatureReader,
    FeatureTeacher,
    layer_widths,
    pooled_layers,
)
from muki_ray.errors import ConfigError
from muki_ray.teachers.loading import load_classifier
from tests import tiny

TEXTS = ["goal", "bank market shares profit law vote party", "good team wins"]


def teacher(tmp_path: Path, kind: str = "bert", **changes: Any) -> FeatureTeacher:
    folder = tiny.classifier(tmp_path / kind, ["a", "b"], kind, **changes)
    return FeatureTeacher(load_classifier(kind, str(folder)))


def test_means_by_hand() -> None:
    # embeddings, then one layer: two rows of three tokens, the last of row 0 is padding
    layer = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [99.0, 99.0]], [[3.0, 3.0], [6.0, 0.0], [0.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = pooled_layers(SimpleNamespace(hidden_states=(torch.zeros(2, 3, 5), layer)), mask, "it")
    assert len(found) == 1, "embeddings are no layer"
    torch.testing.assert_close(found[0], torch.tensor([[2.0, 2.0], [3.0, 2.0]]))


def test_half_precision_is_summed_in_single() -> None:
    layer = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    answer = SimpleNamespace(hidden_states=(layer, layer))
    (found,) = pooled_layers(answer, torch.ones(1, 4096, dtype=torch.int64), "it")
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "hidden",
    [None, (), (torch.zeros(2, 3, 4),), (torch.zeros(2, 3, 4), torch.zeros(2, 2, 4)), (torch.zeros(2, 4),) * 2],
    ids=["none", "empty", "embeddings only", "pooled tokens", "no token axis"],
)  # fmt: skip
def test_models_without_states_per_token_are_refused(hidden: Any) -> None:
    with pytest.raises(ConfigError, match=r"^teacher 'x' gives no hidden states .* method vanilla_kd") as e:
        pooled_layers(SimpleNamespace(hidden_states=hidden), torch.ones(2, 3), "teacher 'x'")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", sorted(tiny.SIZES))
def test_a_rows_features_do_not_depend_on_its_batch(kind: str, tmp_path: Path) -> None:
    one = teacher(tmp_path, kind)
    together = one(one.tokenize(TEXTS, None))
    assert [layer.shape[1] for layer in together] == one.widths()
    for i, text in enumerate(TEXTS):
        alone = one(one.tokenize([text], None))
        for layer, other in zip(alone, together, strict=True):
            torch.testing.assert_close(layer[0], other[i], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[-1][0], together[-1][1], atol=1e-2)


def test_widths_are_those_of_every_layer(tmp_path: Path) -> None:
    assert teacher(tmp_path, "bert").widths() == [16, 16, 16]
    assert teacher(tmp_path, "distilbert", dim=24).widths() == [24, 24]


def test_a_teacher_only_reads(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "one", ["a", "b"])
    loaded = load_classifier("one", str(folder))
    loaded.model.train()
    one = FeatureTeacher(loaded)
    first, second = (one(one.tokenize(TEXTS, None)) for _ in range(2))
    for layer, other in zip(first, second, strict=True):
        assert torch.equal(layer, other), "dropout is off"
        assert not layer.requires_grad
    assert not any(parameter.requires_grad for parameter in one.model.parameters())


def test_a_teacher_reads_with_its_own_tokenizer_and_length(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "one", ["a", "b"])
    one = FeatureTeacher(load_classifier("one", str(folder), max_length=6))
    tokens = one.tokenize(["bank market shares profit law vote", "goal"], None)
    assert set(tokens) == {"input_ids", "attention_mask"}
    assert tokens["input_ids"].shape == (2, 6)
    assert tokens["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    pairs = one.tokenize(["bank"], ["goal"])
    assert pairs["input_ids"].shape == (1, 5), "[CLS] bank [SEP] goal [SEP]"


def test_looking_at_the_widths_leaves_the_mode(tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny.classifier(tmp_path / "s", ["a", "b"]))
    probe = tiny.tokenizer()(TEXTS, padding=True, return_tensors="pt")
    for training in (True, False):
        model.train(training)
        assert layer_widths(model, probe, "the student") == [16, 16, 16]
        assert model.training is training


def test_the_network_answers_as_the_student(tmp_path: Path) -> None:
    class Heads(torch.nn.Module):
        def forward(self, student: Any, teachers: Any, weights: torch.Tensor) -> torch.Tensor:
            return (weights * (student[-1] - teachers[0][-1]).square().sum(1)).sum()

    model = AutoModelForSequenceClassification.from_pretrained(tiny.classifier(tmp_path / "s", ["a", "b"]))
    probe = tiny.tokenizer()(TEXTS, padding=True, return_tensors="pt")
    network = FeatureNetwork(model, Heads()).eval()
    expected = model(**probe).logits
    torch.testing.assert_close(network(**probe), expected)
    features = pooled_layers(model(**probe, output_hidden_states=True), probe["attention_mask"], "s")
    shifted = [[layer.detach() + 1 for layer in features]]
    logits, loss = network(**probe, features=shifted, weights=torch.tensor([1.0, 0.0, 2.0]))
    torch.testing.assert_close(logits, expected)
    assert float(loss.detach()) == pytest.approx(3 * 16, rel=1e-4)


# -- teachers who read again and again ---------------------------------------------------------------------


def readers(tmp_path: Path, **changes: Any) -> FeatureReader:
    """Of two teachers, the second layers and the last ones."""
    return FeatureReader(
        [teacher(tmp_path), teacher(tmp_path, "distilbert", dim=24)], [[0, 2], [1]], **changes
    )


def test_what_is_kept_is_what_was_read(tmp_path: Path) -> None:
    reader = readers(tmp_path)
    first = reader(reader.prepare(TEXTS, None))
    assert [[tuple(layer.shape) for layer in own] for own in first] == [
        [(3, 16), (0,), (3, 16)],
        [(0,), (3, 24)],
    ]
    for one, found in zip(reader.teachers, first, strict=True):
        for layer, expected in zip(found, one(one.tokenize(TEXTS, None)), strict=True):
            assert not len(layer) or torch.equal(layer, expected)
    # in another order, with a text that is new
    texts = [TEXTS[2], "film", TEXTS[0]]
    reading = reader.prepare(texts, None)
    assert (reading.known, reading.unknown) == ([0, 2], [1])
    assert [len(tokens["input_ids"]) for tokens in reading.tokens] == [1, 1]
    again = reader(reading)
    alone = [one(one.tokenize(["film"], None)) for one in reader.teachers]
    for m, own in enumerate(again):
        for layer, rows in enumerate(own):
            if len(rows):
                assert torch.equal(rows[[0, 2]], first[m][layer][[2, 0]])
                torch.testing.assert_close(rows[1], alone[m][layer][0])


def test_pairs_are_told_apart(tmp_path: Path) -> None:
    reader = readers(tmp_path)
    (one, *_), _ = reader(reader.prepare(["goal"], ["film"]))
    for texts, pairs in ((["goal"], None), (["goal"], ["bank"])):
        reading = reader.prepare(texts, pairs)
        assert reading.unknown == [0]
        assert not torch.allclose(reader(reading)[0][0], one)
    assert reader.prepare(["goal"], ["film"]).known == [0]


@pytest.mark.parametrize(("texts", "kept"), [(0, 0), (2, 2), (99, 3)])
def test_no_more_is_kept_than_there_is_room_for(texts: int, kept: int, tmp_path: Path) -> None:
    reader = readers(tmp_path, room=texts * (400 + 4 * (16 + 16 + 24)) + 7)
    first = reader(reader.prepare(TEXTS, None))
    reading = reader.prepare(TEXTS, None)
    assert reading.known == list(range(kept))
    for own, others in zip(reader(reading), first, strict=True):
        for layer, other in zip(own, others, strict=True):
            torch.testing.assert_close(layer, other, atol=1e-5, rtol=1e-5)
