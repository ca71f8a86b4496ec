"""Model folders, from wherever they are; S3 against a real S3 server on this machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from muki_ray.errors import ConfigError, StudentError, TeacherError
from muki_ray.filesystem import copy_tree, redact
from muki_ray.hub import cache_folder, check_weights, content_hash, fetch, tensor_shapes, weight_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a training leaves behind."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": {"0": "a", "1": "b"}}))
    (model / "tokenizer.json").write_text("{}")
    (model / "vocab.txt").write_text("a\nb\n")
    save_file({"w": torch.zeros(2, 3), "b": torch.ones(2)}, model / "model.safetensors")
    return model


def get(location: str | Path, revision: str | None = None) -> Path:
    return fetch(str(location), revision, False, TeacherError, "teacher 'x'")


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_is_used_where_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(folder) == folder
    assert get(folder.as_uri()) == folder
    monkeypatch.chdir(folder.parent)
    assert get("model") == folder
    assert get("./model").samefile(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert get("~/model") == folder


@pytest.mark.parametrize(
    "location", ["/no/such", "./none", "~/none-such", "a/b/c", "../none", "file:///no/such"]
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(location: str) -> None:
    with pytest.raises(
        TeacherError, match=r"^teacher 'x': no folder at '/.*; give the model's folder or a hub id$"
    ):
        get(location)


@pytest.mark.parametrize("location", ["owner/none", "none"])
def test_what_may_be_a_hub_id(location: str) -> None:
    with pytest.raises(
        StudentError, match=rf"^s: '{location}' is neither a folder here nor a model that"
    ) as refusal:
        fetch(location, None, False, StudentError, "s")
    assert "\n" not in str(refusal.value)


def test_a_model_in_the_hubs_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--owner--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert get("owner/name") == repo / "snapshots" / commit
    with pytest.raises(TeacherError, match="check the spelling, the revision"):
        get("owner/name", revision="other")


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUKI_RAY_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("MUKI_RAY_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/muki_ray")


# -- what is in it -------------------------------------------------------------------------------------------


def test_weight_files(folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "adapter_model.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"")
    safe, pickled = weight_files(folder)
    assert [p.name for p in safe] == ["model.safetensors"]
    assert [p.name for p in pickled] == ["adapter_model.bin", "pytorch_model.bin"]


def test_check_weights(folder: Path) -> None:
    check_weights(folder, False, StudentError, "student")
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    with pytest.raises(
        StudentError, match=r"^student: no weights \(\*.safetensors\) in '.*model'; give the folder"
    ):
        check_weights(folder, True, StudentError, "student")
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        StudentError, match=r"^student: 'model' has only pickle weights \(pytorch_model.bin\)"
    ):
        check_weights(folder, False, StudentError, "student")
    with pytest.raises(StudentError, match=r"safetensors$"):  # no advice that nobody can follow
        check_weights(folder, False, StudentError, "student", can_allow=False)
    check_weights(folder, True, StudentError, "student")


def test_tensor_shapes(folder: Path) -> None:
    save_file({"more": torch.zeros(4)}, folder / "model-00002-of-00002.safetensors")
    assert tensor_shapes(folder) == {"w": (2, 3), "b": (2,), "more": (4,)}
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is not readable safetensors"):
        tensor_shapes(folder)


# -- digests -------------------------------------------------------------------------------------------------


def test_training_leftovers_do_not_change_the_digest(folder: Path) -> None:
    before = content_hash(folder)
    for name in ("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
                 "README.md", ".gitattributes", "events.out.tfevents.1", "all_results.json", "modeling_x.py"):  # fmt: skip
        (folder / name).write_bytes(b"x")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"x")
    assert content_hash(folder) == before


def test_where_it_was_written_and_how_labels_are_called_do_not_either(folder: Path) -> None:
    before = content_hash(folder)
    content = {"id2label": {"0": "x", "1": "y"}, "label2id": {"x": 0, "y": 1}, "model_type": "bert",
               "_name_or_path": "/tmp/a", "transformers_version": "9"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content, indent=4))
    assert content_hash(folder) == before
    moved = Path(shutil.copytree(folder, folder.parent / "moved"))
    assert content_hash(moved) == before


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "bpe.codes",
        "model.safetensors",
        "adapter_config.json",
        "config.json",
    ],
)
def test_what_changes_answers_changes_the_digest(folder: Path, name: str) -> None:
    before = content_hash(folder)
    (folder / name).write_text('{"changed": true}')
    assert content_hash(folder) != before


def test_pickles_count_only_where_they_would_be_loaded(folder: Path) -> None:
    before = content_hash(folder)
    (folder / "pytorch_model.bin").write_bytes(b"1")
    assert content_hash(folder) == before
    (folder / "model.safetensors").unlink()
    one = content_hash(folder)
    (folder / "pytorch_model.bin").write_bytes(b"22")
    assert content_hash(folder) != one


# -- S3 ------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(s3_bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder in a fresh bucket."""
    monkeypatch.setenv("MUKI_RAY_CACHE", str(tmp_path / "cache"))
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"large")
    (folder / "optimizer.pt").write_bytes(b"larger")
    copy_tree(str(folder), f"s3://{s3_bucket}/models/one")
    return f"s3://{s3_bucket}/models/one"


def test_s3_is_copied_once(remote: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = get(remote)
    assert first.parent == cache_folder() / "models"
    assert {p.name for p in first.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "model.safetensors",
    }
    assert content_hash(first) == content_hash(folder)
    assert [p.name for p in first.parent.iterdir()] == [first.name], "no temporary folder is left"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("copied again")

    monkeypatch.setattr("muki_ray.filesystem.copy_file", never)
    assert get(remote) == first


def test_s3_is_copied_anew_when_it_changed(remote: str, folder: Path) -> None:
    first = get(remote)
    (folder / "vocab.txt").write_text("a\nb\nc\n")
    copy_tree(str(folder), remote)
    second = get(remote)
    assert second != first
    assert content_hash(second) == content_hash(folder) != content_hash(first)


@pytest.mark.parametrize("place", ["{remote}/none", "s3://never-made/models"])
def test_nothing_in_s3(remote: str, place: str) -> None:
    with pytest.raises(
        TeacherError, match=r"^teacher 'x': cannot list 's3://.*check the URI and the"
    ) as refusal:
        get(place.format(remote=remote))
    assert "\n" not in str(refusal.value)


def test_no_model_in_s3(remote: str) -> None:
    parent = remote.rpartition("/")[0]
    with pytest.raises(TeacherError, match=rf"^teacher 'x': no model files in '{parent}'; give the folder"):
        get(parent)


def test_a_copy_that_fails_leaves_nothing_and_says_so(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["MUKI_RAY_CACHE"]).write_text("a file where the folder should be")
    with pytest.raises(TeacherError, match=rf"cannot copy '{redact(remote)}' to .*MUKI_RAY_CACHE"):
        get(remote)


def test_credentials_are_not_shown(remote: str) -> None:
    with pytest.raises((TeacherError, ConfigError)) as refusal:
        get("s3://key:secret@never-made/models")
    assert "secret" not in str(refusal.value)
