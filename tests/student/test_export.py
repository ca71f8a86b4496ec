"""The product's folder: model files copied, training state left behind, the marker last."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from muki_ray.errors import StoreError
from muki_ray.store import Folder
from muki_ray.student.export import MARKER, export, exported, finish
from muki_ray.student.loop import STATE_FILE
from tests import tiny


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What training saves: a model folder, and state that the product does not need."""
    folder = tiny.classifier(tmp_path / "checkpoint", ["a", "b"])
    (folder / STATE_FILE).write_bytes(b"optimizer")
    (folder / ".metadata.json").write_text("{}")
    (folder / "deeper").mkdir()
    return folder


def test_a_student_is_exported_once_it_is_finished(checkpoint: Path, tmp_path: Path) -> None:
    student = Folder(str(tmp_path / "run" / "student"))
    assert exported(student) is None
    export(str(checkpoint), student)
    assert exported(student) is None, "no marker before the folder is whole"
    finish(student, "student-1", "# card", "output: x", {"labels": ["a", "b"]})
    assert exported(student) == "student-1"
    assert student.read_json(MARKER) == {"training": "student-1", "labels": ["a", "b"]}
    assert student.read_bytes("README.md") == b"# card"
    assert student.read_bytes("muki_ray.yaml") == b"output: x"
    model = {p.name for p in checkpoint.iterdir() if p.is_file()} - {STATE_FILE, ".metadata.json"}
    assert student.names() == model | {"README.md", "muki_ray.yaml", MARKER}
    for name in model:
        assert student.read_bytes(name) == (checkpoint / name).read_bytes()
    assert AutoModelForSequenceClassification.from_pretrained(student.location).config.num_labels == 2


def test_the_marker_is_the_last_file(checkpoint: Path, tmp_path: Path) -> None:
    student = Folder(str(tmp_path / "student"))
    export(str(checkpoint), student)
    finish(student, "student-1", "", "", {})
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "student").iterdir()}
    assert max(times, key=lambda name: times[name]) == MARKER
    finish(student, "student-2", "", "", {})
    assert exported(student) == "student-2"


def test_another_students_files_do_not_stay(checkpoint: Path, tmp_path: Path) -> None:
    student = Folder(str(tmp_path / "student"))
    stale = ["model-00002-of-00002.safetensors", "pytorch_model.bin", "vocab.txt", "added_tokens.json",
             "spiece.model", "chat_template.jinja"]  # fmt: skip
    for name in [*stale, "config.json", "notes.md"]:
        student.write_bytes(name, b"old")
    finish(student, "student-0", "", "", {})
    export(str(checkpoint), student)
    assert exported(student) is None
    assert not student.names() & set(stale)
    assert student.read_bytes("config.json") == (checkpoint / "config.json").read_bytes()
    assert student.read_bytes("notes.md") == b"old", "what is no model file is not ours to delete"


def test_an_export_that_fails_leaves_no_marker(tmp_path: Path) -> None:
    student = Folder(str(tmp_path / "student"))
    finish(student, "student-0", "", "", {})
    with pytest.raises(FileNotFoundError):
        export(str(tmp_path / "none"), student)
    assert exported(student) is None


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"training": 3}'])
def test_a_marker_that_names_no_training(content: bytes, tmp_path: Path) -> None:
    student = Folder(str(tmp_path))
    student.write_bytes(MARKER, content)
    assert exported(student) is None
    student.write_bytes(MARKER, b"{")
    with pytest.raises(StoreError, match="is not JSON"):
        exported(student)


def test_to_and_from_an_object_store(checkpoint: Path, s3_bucket: str) -> None:
    student = Folder(f"s3://{s3_bucket}/run/student")
    assert exported(student) is None
    student.write_bytes("model-00002-of-00002.safetensors", b"old")
    export(str(checkpoint), student)
    finish(student, "student-1", "# card", "output: x", {})
    assert exported(student) == "student-1"
    assert not student.has("model-00002-of-00002.safetensors")
    assert not student.has(STATE_FILE)
    assert student.read_bytes("model.safetensors") == (checkpoint / "model.safetensors").read_bytes()
    again = Folder(f"s3://{s3_bucket}/other/student")
    export(student.location, again)
    assert exported(again) is None
    assert again.read_bytes("config.json") == (checkpoint / "config.json").read_bytes()
