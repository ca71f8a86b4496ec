"""The student's base model: what is refused, and what its fresh head is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError
from muki_ray.student.model import StudentSpec, build_student, inspect_student
from tests import tiny

LABELS = ["x", "y", "z"]


def inspected(folder: Path, **settings: Any) -> StudentSpec:
    return inspect_student(StudentConfig(model=str(folder), **settings), 32)


def head_of(model: Any) -> nn.Linear:
    """The last projection outside the encoder."""
    inside = model.base_model_prefix + "."
    named = model.named_modules()
    return [m for name, m in named if isinstance(m, nn.Linear) and not name.startswith(inside)][-1]


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    """Change keys of a JSON file."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize("kind", list(tiny.SIZES))
def test_every_architecture(kind: str, tmp_path: Path) -> None:
    spec = inspected(tiny.base(tmp_path / "base", kind))
    model, tokenizer = build_student(spec, LABELS, seed=3, dropout=0.0)
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert model.config.label2id == {"x": 0, "y": 1, "z": 2}
    assert (model.config.num_labels, model.config.problem_type) == (3, "single_label_classification")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert head_of(model).weight.std().item() < 0.05
    again, _ = build_student(spec, LABELS, seed=3, dropout=0.0)
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    other, _ = build_student(spec, LABELS, seed=4, dropout=0.0)
    assert not torch.equal(head_of(model).weight, head_of(other).weight)
    # in training mode, yet without dropout; and what pads a row does not change its answer
    model.train()
    pair = tokenizer(["chip phone a of in", "good"], padding=True, return_tensors="pt")
    with torch.no_grad():
        first = model(**pair).logits
        assert torch.equal(first, model(**pair).logits)
        alone = model(**tokenizer(["good"], return_tensors="pt")).logits
    torch.testing.assert_close(first[1:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "gpt2"])
def test_an_old_head_of_the_same_size_does_not_survive(kind: str, tmp_path: Path) -> None:
    spec = inspected(tiny.classifier(tmp_path / "old", ["a", "b", "c"], kind))
    bare = inspected(tiny.base(tmp_path / "base", kind))
    model, _ = build_student(spec, LABELS, seed=0, dropout=None)
    fresh, _ = build_student(bare, LABELS, seed=0, dropout=None)
    torch.testing.assert_close(head_of(model).weight, head_of(fresh).weight, atol=0, rtol=0)
    assert head_of(model).bias is None or not head_of(model).bias.any()
    assert model.config.id2label == {0: "x", 1: "y", 2: "z"}


def test_the_encoder_keeps_its_weights(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "old", ["a", "b"])
    model, _ = build_student(inspected(folder), LABELS, seed=0, dropout=None)
    stored = {k: v for k, v in load_file(folder / "model.safetensors").items() if k.startswith("bert.")}
    assert stored
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())


def test_labels_as_many_as_hidden_units(tmp_path: Path) -> None:
    """Then an inner projection has the head's size, too: only the last one is the head."""
    names = [f"l{i}" for i in range(16)]
    folder = tiny.classifier(tmp_path / "old", names, "roberta")
    model, _ = build_student(inspected(folder), names, seed=0, dropout=None)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.classifier.dense.weight, stored["classifier.dense.weight"])
    assert not torch.equal(model.classifier.out_proj.weight, stored["classifier.out_proj.weight"])
    assert model.classifier.out_proj.weight.std().item() < 0.05


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_dropout_override(kind: str, tmp_path: Path) -> None:
    name = "attention_dropout" if kind == "llama" else "hidden_dropout_prob"
    rate: dict[str, Any] = {name: 0.3}
    spec = inspected(tiny.base(tmp_path / "base", kind, **rate))
    model, _ = build_student(spec, LABELS, seed=0, dropout=0.25)
    rates = {m.p for m in model.modules() if isinstance(m, nn.Dropout)}
    plain = {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")}
    assert rates | plain == {0.25}
    assert getattr(model.config, name) == 0.3, "the saved configuration keeps the base's rates"
    kept, _ = build_student(spec, LABELS, seed=0, dropout=None)
    assert 0.3 in {getattr(m, "p", getattr(m, "attention_dropout", None)) for m in kept.modules()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_without_padding_gets_one(kind: str, tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base", kind, pad_token_id=None)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(folder)
    model, own = build_student(inspected(folder), LABELS, seed=0, dropout=0.0)
    assert own.pad_token == "[SEP]"
    assert model.config.pad_token_id == own.pad_token_id == 3
    inputs = own(["chip", "chip phone a of"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs).logits[:1],
            model(**own(["chip"], return_tensors="pt")).logits,
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    ("wanted", "default", "expected"), [(None, 32, 32), (None, 512, 64), (20, 32, 20), (64, 8, 64)]
)
def test_max_length(tmp_path: Path, wanted: int | None, default: int, expected: int) -> None:
    config = StudentConfig(model=str(tiny.base(tmp_path / "base")), max_length=wanted)
    assert inspect_student(config, default).max_length == expected


def test_positions_that_start_behind_the_padding(tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base", "roberta")  # 70 positions, the first of them is padding
    edit(folder, "tokenizer_config.json", model_max_length=10**6)
    assert inspect_student(StudentConfig(model=str(folder)), 512).max_length == 69
    with pytest.raises(StudentError, match="takes at most 69 tokens, got max_length: 70"):
        inspected(folder, max_length=70)


# -- what is refused -------------------------------------------------------------------------------------


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _no_classifier_form(folder: Path) -> None:
    edit(folder, model_type="whisper")


def _unknown_kind(folder: Path) -> None:
    edit(folder, model_type="no-such-model")


def _own_code(folder: Path) -> None:
    edit(folder, auto_map={"AutoModelForSequenceClassification": "mine.Model"})


def _no_padding(folder: Path) -> None:
    edit(folder, pad_token_id=None)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = tokenizer.unk_token = None
    tokenizer.save_pretrained(folder)


REFUSED = [
    (_no_config, "no config.json in .*; give the folder of a base model"),
    (_no_weights, r"no weights \(\*\.safetensors\)"),
    (_pickled, "only pickle weights .* set allow_pickle: true"),
    (_no_tokenizer, r"no tokenizer in .* \(none of tokenizer\.json, vocab\.txt\)"),
    (_no_classifier_form, "whisper"),
    (_unknown_kind, "no-such-model"),
    (_own_code, "brings its own code"),
    (_no_padding, "neither a padding nor an end token"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[d.__name__ for d, _ in REFUSED])
def test_refused(damage: Any, message: str, tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    damage(folder)
    with pytest.raises(StudentError, match=f"^student.*{message}") as refusal:
        inspected(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match=r"^student: no folder at .*/none'; give the model's folder"):
        inspected(tmp_path / "none")


@pytest.mark.parametrize("length", [65, 1])
def test_a_length_that_cannot_be(tmp_path: Path, length: int) -> None:
    with pytest.raises(StudentError, match=f"takes at most 64 tokens|max_length {length} leaves no room"):
        inspected(tiny.base(tmp_path / "base"), max_length=length)


def test_an_encoder_without_its_weights(tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if "layer.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    spec = inspected(folder)
    with pytest.raises(StudentError, match=r"16 tensors of its encoder .* would start from chance"):
        build_student(spec, LABELS, 0, None)


def test_a_missing_pooler_is_drawn(tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "pooler" not in name},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    spec = inspected(folder)
    first, _ = build_student(spec, LABELS, 0, None)
    second, _ = build_student(spec, LABELS, 0, None)
    assert torch.equal(first.bert.pooler.dense.weight, second.bert.pooler.dense.weight)


def test_a_base_that_changed_since_it_was_inspected(tmp_path: Path) -> None:
    folder = tiny.base(tmp_path / "base")
    spec = inspected(folder)
    tiny.base(folder, seed=1)
    with pytest.raises(StudentError, match="differs from the one the driver saw"):
        build_student(spec, LABELS, 0, None)


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "token_type_ids"]])
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_tokenizer_makes_what_the_model_takes(kind: str, names: list[str], tmp_path: Path) -> None:
    """Without the mask padding would be read as text, by the student and by all who load it."""
    folder = tiny.base(tmp_path / "base", kind)
    edit(folder, "tokenizer_config.json", model_input_names=names)
    model, tokenizer = build_student(inspected(folder), LABELS, seed=3, dropout=0.0)
    pair = tokenizer(["chip phone a of in", "good"], padding=True, return_tensors="pt")
    with torch.no_grad():
        alone = model(**tokenizer(["good"], return_tensors="pt")).logits
        torch.testing.assert_close(model(**pair).logits[1:], alone, atol=1e-5, rtol=1e-4)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert "attention_mask" in AutoTokenizer.from_pretrained(tmp_path / "saved")("good")
