"""What is said of a teacher before it is loaded, and loading it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from muki_ray.config import TeacherConfig
from muki_ray.config_method import DropoutConfig
from muki_ray.errors import LabelError, TeacherError, UserError
from muki_ray.teachers.loading import (
    TeacherSpec,
    inspect,
    inspect_classifier,
    load,
    load_classifier,
    resolve_dtype,
)
from muki_ray.teachers.scoring import Scorer
from tests import tiny

LABELS = ["world", "sport", "business"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier(tmp_path_factory.mktemp("original"), LABELS)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A good teacher, to be spoilt."""
    return Path(shutil.copytree(original, tmp_path / "teacher"))


def look(location: Any, **changes: Any) -> TeacherSpec:
    return inspect(TeacherConfig(name="news", model=str(location), **changes))


def refused(what: str, location: Any, kind: type[UserError] = TeacherError, **changes: Any) -> None:
    """`inspect` refuses with one line that names the teacher and matches."""
    with pytest.raises(kind, match=what) as refusal:
        look(location, **changes)
    message = str(refusal.value)
    assert message.startswith("teacher 'news'")
    assert "\n" not in message


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes."""
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in changes}
    path.write_text(json.dumps({**kept, **{k: v for k, v in changes.items() if v is not None}}))


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(name))
    save_file(
        {**tensors, **({} if changed is None else {name: changed})},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def to_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def answers(spec: TeacherSpec) -> np.ndarray:
    classifier = load(spec, "cpu")
    scorer = Scorer(classifier, samples=0, dropout=DropoutConfig(), seed_key="", token_budget=80)
    return np.asarray(scorer.score(tiny.texts(9)).logits)


# -- a good one ----------------------------------------------------------------------------------------------


def test_a_good_teacher(folder: Path) -> None:
    spec = look(folder)
    assert spec.labels.names == tuple(LABELS)
    assert (spec.max_length, spec.dtype, spec.location) == (64, "auto", str(folder))
    classifier = load(spec.resolved(on_gpu=False), "cpu")
    assert not classifier.model.training
    assert (classifier.num_labels, classifier.max_length) == (3, 64)
    assert classifier.input_names == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("kind", tiny.SIZES)
def test_every_architecture(tmp_path: Path, kind: str) -> None:
    spec = look(tiny.classifier(tmp_path, LABELS, kind), dtype="float32")
    assert answers(spec).shape == (9, 3)


def test_a_relative_path_is_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder.parent)
    spec = look(folder.name, dtype="float32")
    monkeypatch.chdir("/")
    assert spec.location == str(folder)
    assert answers(spec).shape == (9, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder: Path, dtype: Any) -> None:
    model = load(look(folder, dtype=dtype), "cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_auto_is_decided_once(folder: Path) -> None:
    spec = look(folder).resolved(on_gpu=False)
    assert spec.dtype == resolve_dtype("auto", on_gpu=False) in ("float32", "bfloat16")
    assert look(folder, dtype="float16").resolved(on_gpu=True).dtype == "float16"
    assert spec.resolved(on_gpu=True).dtype == spec.dtype


# -- refusals: files -----------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    refused(rf"no folder at '{tmp_path}/none'; give the model's folder or a hub id", tmp_path / "none")


def test_a_file(folder: Path) -> None:
    refused("config.json' is a file; give the model's folder", folder / "config.json")


@pytest.mark.parametrize("name", ["owner/never-there", "never-there", "no such name"])
def test_a_hub_id_that_cannot_be_had(name: str) -> None:
    refused(rf"'{name}' is neither a folder here nor a model that can be had.*check the spelling", name)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused("no config.json in .*; give the folder that save_pretrained wrote", folder)


@pytest.mark.parametrize("content", ["{", "[]", "3", ""])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused("cannot read config.json", folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(r"no weights \(\*.safetensors\)", folder)


def test_a_classifier_that_is_only_evaluated_is_checked_too(folder: Path) -> None:
    """Under the name that its setting gives it, and without advice that no setting follows."""
    assert inspect_classifier(str(folder), "test.compare.x") == tuple(LABELS)
    to_pickle(folder)
    with pytest.raises(TeacherError, match=r"^test\.compare\.x: .* convert them to safetensors$"):
        inspect_classifier(str(folder), "test.compare.x")
    with pytest.raises(TeacherError, match=r"^test\.compare\.x: "):
        load_classifier("x", str(folder), what="test.compare.x")


def test_pickle_only(folder: Path) -> None:
    exact = answers(look(folder, dtype="float32"))
    to_pickle(folder)
    refused(r"only pickle weights \(pytorch_model.bin\), which can run code when loaded; convert", folder)
    # the same numbers, but they lie elsewhere in memory, and kernels may add them up in another order
    np.testing.assert_allclose(answers(look(folder, dtype="float32", allow_pickle=True)), exact, atol=1e-6)
    with pytest.raises(TeacherError, match="only pickle weights"):
        load_classifier("news", str(folder))


class Bomb:
    """What a hostile pickle does: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_an_allowed_pickle_still_runs_no_code(folder: Path, tmp_path: Path) -> None:
    to_pickle(folder)
    torch.save({"classifier.weight": Bomb(tmp_path / "boom")}, folder / "pytorch_model.bin")
    spec = look(folder, allow_pickle=True)
    with pytest.raises(TeacherError, match="cannot load"):
        load(spec, "cpu")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused("model.safetensors is not readable safetensors .*; download or save the model again", folder)
    with pytest.raises(TeacherError, match="cannot load"):
        load_classifier("news", str(folder))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "deberta-v2"])
def test_no_tokenizer(tmp_path: Path, kind: str) -> None:
    """For some kinds Transformers would make up an empty vocabulary, to which every word is unknown."""
    folder = tiny.classifier(tmp_path, LABELS, kind)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused("no (usable )?tokenizer in .*; save it beside the model", folder)


# -- refusals: kinds of model --------------------------------------------------------------------------------


def test_an_unknown_model_type(folder: Path) -> None:
    edit(folder / "config.json", model_type="never-heard-of")
    refused("cannot read config.json .*never-heard-of", folder)


def test_a_model_type_without_a_classifier(folder: Path) -> None:
    edit(folder / "config.json", model_type="vit")
    refused(r"\(model_type 'vit'\) describes no sequence classifier", folder)


def test_sizes_that_cannot_be(folder: Path) -> None:
    edit(folder / "config.json", num_attention_heads=3)
    refused("describes no sequence classifier that Transformers can build: .*hidden size", folder)


@pytest.mark.parametrize("kind", ["bert", "my-own"])
def test_code_of_its_own_is_refused_and_never_run(folder: Path, tmp_path: Path, kind: str) -> None:
    touch = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "custom.py").write_text(touch)
    code = {"AutoConfig": "custom.C", "AutoModelForSequenceClassification": "custom.M"}
    edit(folder / "config.json", model_type=kind, auto_map=code)
    refused(
        rf"model type '{kind}' brings its own code \(auto_map in config.json\), which is never run", folder
    )
    with pytest.raises(TeacherError, match="brings its own code"):
        load_classifier("news", str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_leftover_of_code_once_needed_is_no_harm(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"})
    assert look(folder).labels.names == tuple(LABELS)


def test_a_tokenizer_with_code_of_its_own_never_runs_it(folder: Path, tmp_path: Path) -> None:
    (folder / "custom.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": ["custom.T", None]},
    )
    (folder / "tokenizer.json").unlink()
    refused("no usable tokenizer", folder)
    assert not (tmp_path / "ran").exists()


def test_multi_label(folder: Path) -> None:
    edit(folder / "config.json", problem_type="multi_label_classification")
    refused("is a multi-label classifier", folder)


def test_regression(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", problem_type="regression")
    refused("is a regression model", folder)
    refused(r"is a regression model \(1 output\)", tiny.classifier(tmp_path / "one", ["score"]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_base_model(tmp_path: Path, kind: str) -> None:
    folder = tiny.base(tmp_path, kind)
    edit(folder / "config.json", id2label={"0": "a", "1": "b"})
    refused(r"its classification head is not in the weights \(.*\); give a fine-tuned classifier", folder)
    with pytest.raises(TeacherError, match="have no trained weights"):
        load_classifier("news", str(folder))


def test_a_tensor_of_the_encoder_that_is_missing(folder: Path) -> None:
    change_tensor(folder, "bert.encoder.layer.1.output.dense.weight", lambda tensor: None)
    with pytest.raises(
        TeacherError, match=r"1 tensors have no trained weights \(such as bert.encoder.layer.1"
    ):
        load(look(folder), "cpu")


def test_a_head_that_disagrees_with_the_labels(folder: Path) -> None:
    edit(folder / "config.json", id2label={"0": "world", "1": "sport"}, label2id={"world": 0, "sport": 1})
    refused(
        r"classifier.weight has shape \(3, 16\) in the weights but \(2, 16\) by config.json; mend id2label \(2 labels\)",
        folder,
    )
    with pytest.raises(TeacherError, match="cannot load"):
        load_classifier("news", str(folder))


def test_unnamed_labels(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path, ["LABEL_0", "LABEL_1"])
    refused(r"has unnamed labels \(LABEL_0\).*give them names with labels", folder, LabelError)
    assert look(folder, labels={"LABEL_0": "ham", "LABEL_1": "spam"}).labels.names == ("ham", "spam")


# -- length and padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "positions", "tokenizer_says", "limit"),
    [
        ("bert", 70, 64, 64),
        ("bert", 40, 64, 40),
        ("bert", 2000, None, None),  # no limit known: the project's own default
        ("gpt2", 40, None, 40),
        # their positions start after the padding index: 0 here, and always 1 in MPNet
        ("roberta", 40, 64, 39),
        ("xlm-roberta", 40, None, 39),
        ("mpnet", 40, 64, 38),
    ],
)
def test_max_length(
    tmp_path: Path, kind: str, positions: int, tokenizer_says: int | None, limit: int | None
) -> None:
    folder = tiny.classifier(tmp_path, LABELS, kind, max_position_embeddings=positions)
    edit(folder / "tokenizer_config.json", model_max_length=tokenizer_says)
    spec = look(folder, dtype="float32")
    assert spec.max_length == (limit or 512)
    assert look(folder, max_length=7).max_length == 7
    if limit is None:
        assert look(folder, max_length=2000).max_length == 2000
        return
    refused(
        rf"takes at most {limit} tokens, got max_length: {limit + 1}; use {limit} or less",
        folder,
        max_length=limit + 1,
    )
    # a text that fills it is answered, so the limit is no larger than the model's
    classifier = load(spec, "cpu")
    scorer = Scorer(classifier, samples=0, dropout=DropoutConfig(), seed_key="")
    assert scorer.score(["good " * 200]).finite().all()


@pytest.mark.parametrize("too_small", [1, 2, 4])
def test_max_length_without_room_for_text(folder: Path, too_small: int) -> None:
    refused(rf"max_length {too_small} leaves no room for text; use at least 5", folder, max_length=too_small)
    assert look(folder, max_length=5).max_length == 5


def padless(folder: Path, **tokens: str) -> Path:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("own", [None, 4])
def test_a_decoder_without_padding(tmp_path: Path, own: int | None) -> None:
    """Each row's answer is that of the row alone, whose last token is the text's last."""
    folder = padless(tiny.classifier(tmp_path, LABELS, "gpt2"), eos_token="[SEP]")
    edit(folder / "config.json", pad_token_id=own)
    edit(folder / "tokenizer_config.json", padding_side="left")
    spec = look(folder, dtype="float32")
    classifier = load(spec, "cpu")
    assert classifier.tokenizer.pad_token == ("[MASK]" if own else "[SEP]")
    assert classifier.tokenizer.padding_side == "right", "absolute positions would shift"
    tokenizer = tiny.tokenizer()
    expected = []
    for text in tiny.texts(9):
        hidden = classifier.model.transformer(**tokenizer(text, return_tensors="pt")).last_hidden_state
        # with the end token as padding, the last token that counts stands before it, in training as here
        expected.append(classifier.model.score(hidden[0, -1 if own else -2]).detach().numpy())
    np.testing.assert_allclose(answers(spec), expected, atol=1e-5)


def test_a_tokenizer_that_cannot_pad(tmp_path: Path) -> None:
    folder = padless(tiny.classifier(tmp_path, LABELS, "gpt2"))
    edit(folder / "config.json", pad_token_id=None)
    refused("its tokenizer has neither a padding nor an end token; set pad_token", folder)


def test_padding_that_tokenizer_and_configuration_know_by_other_ids(tmp_path: Path) -> None:
    """A decoder's classifier reads the configuration's: it would take padding for text."""
    folder = tiny.classifier(tmp_path, LABELS, "gpt2")
    expected = answers(look(folder, dtype="float32"))
    edit(folder / "config.json", pad_token_id=4)
    np.testing.assert_allclose(answers(look(folder, dtype="float32")), expected, atol=1e-5)


def test_a_padding_token_without_an_embedding(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path, LABELS, "gpt2")
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    refused(rf"its padding token '<pad>' has id {len(tokenizer) - 1}, but the model has", folder)


# -- what the fingerprint says -------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_answers(folder: Path) -> None:
    seen = {look(folder, dtype="float32").fingerprint}

    def differs(**changes: Any) -> bool:
        before = len(seen)
        seen.add(look(folder, **{"dtype": "float32", **changes}).fingerprint)
        return len(seen) > before

    assert not differs()
    assert differs(max_length=32)
    assert differs(dtype="bfloat16")
    change_tensor(folder, "classifier.bias", lambda tensor: tensor + 1e-3)
    assert differs()
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["good"], words["bad"] = words["bad"], words["good"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert differs()
    edit(folder / "config.json", layer_norm_eps=1e-6)
    assert differs()


def test_the_fingerprint_does_not_change_with_what_changes_no_answer(folder: Path) -> None:
    before = look(folder, dtype="float32")
    (folder / "README.md").write_text("# A card")
    (folder / "training_args.bin").write_bytes(b"x")
    edit(folder / "config.json", _name_or_path="elsewhere", transformers_version="4.0.0")
    assert look(folder, dtype="float32").fingerprint == before.fingerprint
    # evidence is by position
    renamed = look(folder, dtype="float32", labels={"sport": "games"})
    assert renamed.labels.names == ("world", "games", "business")
    assert renamed.fingerprint == before.fingerprint
    edit(folder / "config.json", id2label={"0": "x", "1": "y", "2": "z"}, label2id={"x": 0, "y": 1, "z": 2})
    assert look(folder, dtype="float32").fingerprint == before.fingerprint
    assert look(folder, dtype="float32").labels.names == ("x", "y", "z")
    shutil.copytree(folder, folder.parent / "copy")
    assert look(folder.parent / "copy", dtype="float32").fingerprint == before.fingerprint


def test_content_that_changed_after_inspection_is_refused(folder: Path) -> None:
    spec = look(folder, dtype="float32")
    change_tensor(folder, "classifier.bias", lambda tensor: tensor + 1.0)
    with pytest.raises(
        TeacherError, match="the model on this machine differs from the one the driver saw; pin"
    ):
        load(spec, "cpu")
