"""LoRA teachers: the adapter answers, or nobody does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from muki_ray.config import TeacherConfig
from muki_ray.errors import LabelError, TeacherError
from muki_ray.teachers.adapters import fetch_adapter
from muki_ray.teachers.loading import TeacherSpec, inspect, load
from tests import tiny

# more labels than the hidden size, so that the head's first dimension is not the smaller one
MANY = 20
NAMES = {f"LABEL_{i}": f"topic {i}" for i in range(MANY)}


def with_head(base: Path, labels: int) -> Any:
    torch.manual_seed(7)
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, ignore_mismatched_sizes=True
    )


def train(base: Path, folder: Path, labels: int = MANY, **changes: Any) -> Any:
    """An adapter with weights as if trained; returns the PeftModel in eval mode."""
    settings = {
        "task_type": "SEQ_CLS",
        "r": 2,
        "target_modules": ["query", "value"],
        "modules_to_save": ["classifier"],
    }
    model = get_peft_model(with_head(base, labels), LoraConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    train(base, tmp_path / "adapter")
    return tmp_path / "adapter"


def look(base: Path, adapter: Path | str, **changes: Any) -> TeacherSpec:
    settings = {"labels": NAMES, "dtype": "float32", **changes}
    return inspect(TeacherConfig(name="t", model=str(base), adapter=str(adapter), **settings))


def logits(model: Any) -> torch.Tensor:
    inputs = tiny.tokenizer()(tiny.texts(5), return_tensors="pt", padding=True)
    with torch.no_grad():
        return torch.as_tensor(model(**inputs).logits)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def rewrite(adapter: Path, change: Any) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(change(tensors), adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_it_answers_as_the_peft_model_does(tmp_path: Path, kind: str) -> None:
    base = tiny.base(tmp_path / "base", kind)
    expected = logits(train(base, tmp_path / "adapter"))
    spec = look(base, tmp_path / "adapter")
    assert spec.labels.names == tuple(NAMES.values())
    classifier = load(spec, "cpu")
    assert classifier.num_labels == MANY
    close(logits(classifier.model), expected)
    plain = logits(with_head(base, MANY).eval())
    assert (plain - expected).abs().max() > 0.1, "the adapter makes a difference"


def test_on_a_base_with_another_head(tmp_path: Path) -> None:
    base = tiny.classifier(tmp_path / "base", ["a", "b", "c"])
    expected = logits(train(base, tmp_path / "adapter"))
    close(logits(load(look(base, tmp_path / "adapter"), "cpu").model), expected)


def test_the_base_does_not_name_the_adapters_labels(tmp_path: Path) -> None:
    base = tiny.classifier(tmp_path / "base", ["good", "bad"])
    train(base, tmp_path / "adapter", labels=2)
    with pytest.raises(LabelError, match=r"unnamed labels \(LABEL_0\)"):
        look(base, tmp_path / "adapter", labels=None)
    names = {"LABEL_0": "ham", "LABEL_1": "spam"}
    assert look(base, tmp_path / "adapter", labels=names).labels.names == ("ham", "spam")


def test_relative_paths_are_pinned(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter.parent)
    spec = look(base, adapter.name)
    monkeypatch.chdir("/")
    assert spec.adapter == str(adapter)
    assert load(spec, "cpu").num_labels == MANY


def test_the_fingerprint_knows_the_adapter(base: Path, adapter: Path) -> None:
    before = look(base, adapter)
    rewrite(adapter, lambda tensors: {k: v + 1 if "lora_B" in k else v for k, v in tensors.items()})
    after = look(base, adapter)
    assert after.fingerprint != before.fingerprint
    with pytest.raises(TeacherError, match="differs from the one the driver saw"):
        load(before, "cpu")


def test_without_a_head(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", task_type=None, modules_to_save=None)
    with pytest.raises(
        TeacherError,
        match=r"^teacher 't', adapter: it holds no classification head; train it with modules_to_save",
    ):
        look(base, tmp_path / "adapter")


def test_a_head_that_is_itself_low_rank_is_none(base: Path, tmp_path: Path) -> None:
    train(
        base,
        tmp_path / "adapter",
        task_type=None,
        modules_to_save=None,
        target_modules=["query", "classifier"],
    )
    with pytest.raises(TeacherError, match="it holds no classification head"):
        look(base, tmp_path / "adapter")


def test_only_a_part_of_the_head_was_saved(tmp_path: Path) -> None:
    """ModernBERT's head has a layer that peft does not save by default: it is drawn anew at every load."""
    base = tiny.base(tmp_path / "base", "modernbert")
    train(base, tmp_path / "part", target_modules=["Wqkv"])
    with pytest.raises(
        TeacherError, match=r"head.dense.weight is neither in the base model nor in the adapter"
    ):
        load(look(base, tmp_path / "part"), "cpu")
    saved = ["classifier", "head"]
    expected = logits(train(base, tmp_path / "whole", target_modules=["Wqkv"], modules_to_save=saved))
    close(logits(load(look(base, tmp_path / "whole"), "cpu").model), expected)


def test_an_adapter_of_another_base(base: Path, tmp_path: Path) -> None:
    """peft passes over tensors that meet no layer, with a warning; the base alone would answer."""
    train(tiny.base(tmp_path / "albert", "albert"), tmp_path / "one")
    with pytest.raises(
        TeacherError, match=r"of its tensors do not meet a layer of the base model.*trained on"
    ):
        load(look(base, tmp_path / "one"), "cpu")
    train(tiny.base(tmp_path / "electra", "electra"), tmp_path / "two")  # its head has other parts
    with pytest.raises(TeacherError, match=r"cannot be put on this base model.*trained on"):
        load(look(base, tmp_path / "two"), "cpu")


def test_an_adapter_of_another_size(base: Path, tmp_path: Path) -> None:
    other = tiny.base(tmp_path / "other", hidden_size=32)
    train(other, tmp_path / "adapter")
    with pytest.raises(TeacherError, match="cannot be put on this base model") as refusal:
        load(look(base, tmp_path / "adapter"), "cpu")
    assert "\n" not in str(refusal.value)


def test_tensors_that_are_missing(base: Path, adapter: Path) -> None:
    rewrite(
        adapter, lambda tensors: {k: v for k, v in tensors.items() if "layer.1.attention.self.query" not in k}
    )
    with pytest.raises(TeacherError, match="2 of its tensors do not meet a layer"):
        load(look(base, adapter), "cpu")


def test_a_head_that_got_lost_on_the_way(base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if loading had kept the fresh head of the base."""
    spec = look(base, adapter)
    merge = PeftModel.__getattr__

    def tampered(self: Any, name: str) -> Any:
        found = merge(self, name)
        if name != "merge_and_unload":
            return found

        def merge_and_unload() -> Any:
            model = found()
            torch.nn.init.zeros_(model.classifier.weight)
            return model

        return merge_and_unload

    monkeypatch.setattr(PeftModel, "__getattr__", tampered)
    with pytest.raises(TeacherError, match=r"its classifier.weight is not what got loaded"):
        load(spec, "cpu")


def test_no_adapter_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(TeacherError, match=r"no adapter_config.json in .*; give the folder that peft wrote"):
        fetch_adapter(str(adapter), False, "t")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_an_adapter_config_that_is_none(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(TeacherError, match=r"cannot read .*adapter_config\.json"):
        fetch_adapter(str(adapter), False, "t")


def test_another_method(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "PROMPT_TUNING"}))
    with pytest.raises(TeacherError, match="its method is 'PROMPT_TUNING'; only LoRA"):
        fetch_adapter(str(adapter), False, "t")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="teacher 't', adapter: no folder at"):
        fetch_adapter(str(tmp_path / "none"), False, "t")


def test_weights_that_are_missing_or_damaged(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TeacherError, match=r"adapter_model\.safetensors is not readable"):
        fetch_adapter(str(adapter), False, "t")
    path.unlink()
    with pytest.raises(TeacherError, match="no weights"):
        fetch_adapter(str(adapter), False, "t")


def test_pickle_weights(base: Path, adapter: Path) -> None:
    expected = logits(load(look(base, adapter), "cpu").model)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"only pickle weights \(adapter_model.bin\)"):
        look(base, adapter)
    spec = look(base, adapter, allow_pickle=True)
    close(logits(load(spec, "cpu").model), expected)
