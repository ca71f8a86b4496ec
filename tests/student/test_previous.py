"""Starting from an earlier student: which one, what is refused, and what the grown one answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError
from muki_ray.store import Folder, RunFolder
from muki_ray.student.export import MARKER, export, exported, finish, origin
from muki_ray.student.loop import run
from muki_ray.student.model import Previous, StudentSpec, build_student, inspect_student
from muki_ray.student.previous import settle_init, start
from muki_ray.student.train import training_name
from tests import tiny
from tests.student import toy
from tests.student.test_loop import recorder


def spec_of(base: Path) -> StudentSpec:
    return inspect_student(StudentConfig(model=str(base)), 32)


def put(student: Folder, model: Path, training: str, previous: str | None = None) -> None:
    """Export a model as the finished student of that training."""
    export(str(model), student, previous)
    finish(student, training, "# card", "output: x", {})


@pytest.fixture
def base(tmp_path: Path) -> StudentSpec:
    return spec_of(tiny.base(tmp_path / "base"))


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A student over two labels, made from that base."""
    return tiny.classifier(tmp_path / "older", ["sport", "weather"], seed=4)


@pytest.fixture
def output(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def named(spec: StudentSpec) -> str:
    """A training's name that says what it starts from."""
    return "new" if spec.previous is None else f"new-{spec.previous.content}"


def logits(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        answer: torch.Tensor = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return answer


def test_a_student_with_a_tiny_step_answers_like_the_previous_one(tmp_path: Path, older: Path) -> None:
    """One epoch that hardly moves: of the labels that both know the logits stay what they were."""
    job = toy.job(tmp_path, 24, epochs=1, learning_rate=1e-12)
    toy.write(
        job.supervision.folder.location,
        job.supervision.rows_per_part,
        targets=np.full((24, 3), 1 / 3, np.float32),
    )
    student = Folder(str(tmp_path / "before"))
    put(student, older, "student-1")
    spec = settle_init(student.location, RunFolder(str(tmp_path / "run")), job.student)
    run(replace(job, student=spec, labels=("business", "weather", "sport")), recorder(tmp_path / "best"))
    new, old = (AutoModelForSequenceClassification.from_pretrained(f) for f in (tmp_path / "best", older))
    assert new.config.id2label == {0: "business", 1: "weather", 2: "sport"} and new.num_labels == 3
    texts = tiny.texts(20)
    answers, before = (logits(m, tiny.tokenizer(), texts) for m in (new, old))
    assert before.std(dim=0).min() > 0.005
    torch.testing.assert_close(answers[:, [2, 1]], before, atol=1e-6, rtol=0)


def test_the_training_is_named_by_what_it_starts_from(tmp_path: Path) -> None:
    job = toy.job(tmp_path, 12)
    starts = [None, Previous("/here", "a"), Previous("/here", "b"), Previous("/there", "b")]
    names = [training_name(replace(job, student=replace(job.student, previous=p)), "abc") for p in starts]
    assert names[0] == training_name(job, "abc")
    assert len(set(names)) == 3 and names[2] == names[3], "where it lies changes nothing"


def test_without_a_finished_student_it_starts_from_the_base(
    base: StudentSpec, older: Path, output: RunFolder
) -> None:
    assert settle_init("previous", output, base) == base == start("previous", output, base, named)
    export(str(older), output.student)  # cut short: no marker
    assert settle_init("previous", output, base) == base == start("previous", output, base, named)
    assert settle_init("base", output, base) == base == start("base", output, base, named)


@pytest.mark.parametrize("word", ["previous", "path"])
def test_one_run_after_the_other(word: str, base: StudentSpec, older: Path, output: RunFolder) -> None:
    """Other teachers' student; then killed at any moment; then the product itself; then teachers again."""
    init = output.student.location + "/" if word == "path" else word
    put(output.student, older, "student-1")
    begun = start(init, output, settle_init(init, output, base), named)
    assert begun.previous is not None
    kept = Folder(begun.previous.location)
    assert kept == output.previous(begun.previous.content) and exported(kept) == "student-1"
    # killed while it trains
    assert start(init, output, settle_init(init, output, base), named) == begun
    # killed while its folder is replaced: half of another model
    export(str(tiny.classifier(older.parent / "newer", ["x", "sport"], seed=8)), output.student, begun.previous.content)  # fmt: skip
    output.student.remove(["model.safetensors"])
    assert exported(output.student) is None
    assert start(init, output, settle_init(init, output, base), named) == begun
    # finished: the same configuration knows its product
    put(output.student, older.parent / "newer", named(begun), begun.previous.content)
    again = start(init, output, settle_init(init, output, base), named)
    assert named(again) == exported(output.student)
    # other teachers once more: now that product is the previous one
    third = start(init, output, settle_init(init, output, base), lambda spec: "third-" + named(spec))
    assert third.previous is not None and third.previous.content != begun.previous.content
    model, _ = build_student(third, ["x", "sport"], 0, None)
    stored = AutoModelForSequenceClassification.from_pretrained(older.parent / "newer")
    assert torch.equal(model.classifier.weight, stored.classifier.weight)


def test_a_copy_that_was_cut_short_is_made_again(base: StudentSpec, older: Path, output: RunFolder) -> None:
    put(output.student, older, "student-1")
    previous = start("previous", output, base, named).previous
    assert previous is not None
    kept = Folder(previous.location)
    kept.remove([MARKER])
    kept.write_bytes("model.safetensors", b"half")
    assert start("previous", output, base, named).previous == previous
    assert kept.read_bytes("model.safetensors") == output.student.read_bytes("model.safetensors")
    kept.write_bytes("model.safetensors", (older / "model.safetensors").read_bytes() + b" ")
    with pytest.raises(StudentError, match="is not the one that the driver saw"):
        build_student(replace(base, previous=previous), ["a", "b"], 0, None)


def test_a_named_folder_is_taken_as_it_is_and_label_names_count(
    base: StudentSpec, older: Path, output: RunFolder, tmp_path: Path
) -> None:
    named_folder = Folder(str(tmp_path / "elsewhere"))
    put(named_folder, older, "student-1")
    spec = settle_init(named_folder.location, output, base)
    assert spec.previous is not None and spec.previous.location == named_folder.location
    assert start(named_folder.location, output, spec, named) == spec
    config = json.loads((older / "config.json").read_text())
    config["id2label"] = {"0": "weather", "1": "sport"}
    named_folder.write_json("config.json", config)
    other = settle_init(named_folder.location, output, base).previous
    assert other is not None and other.content != spec.previous.content


def test_what_is_no_finished_student_of_that_architecture_is_refused(
    base: StudentSpec, older: Path, output: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(StudentError, match=r"no finished student in .*older' \(no muki_ray.json"):
        settle_init(str(older), output, base)
    with pytest.raises(StudentError, match=r"student\.init: no folder at '/nowhere'"):
        settle_init("/nowhere", output, base)
    put(output.student, older, "student-1")
    for kind, changes, message in (
        ("distilbert", {}, "model_type 'bert', student.model has 'distilbert'"),
        ("bert", {"num_hidden_layers": 2}, "num_hidden_layers 3, student.model has 2"),
        ("bert", {"num_attention_heads": 4}, "num_attention_heads 2, student.model has 4"),
    ):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        other = spec_of(tiny.base(tmp_path / "other", kind, **changes))
        for init in ("previous", output.student.location):
            with pytest.raises(StudentError, match=message) as refusal:
                settle_init(init, output, other)
            assert "\n" not in str(refusal.value)


def test_from_and_to_an_object_store(
    base: StudentSpec, older: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUKI_RAY_CACHE", str(tmp_path / "cache"))
    output = RunFolder(f"s3://{s3_bucket}/run")
    put(output.student, older, "student-1")
    for init in ("previous", output.student.location):
        begun = start(init, output, settle_init(init, output, base), named)
        assert begun.previous == Previous(
            output.previous(begun.previous.content).location, begun.previous.content
        )
    model, _ = build_student(begun, ["weather"], 0, None)
    stored = AutoModelForSequenceClassification.from_pretrained(older)
    assert torch.equal(model.classifier.weight[0], stored.classifier.weight[1])
    export(str(older), output.student, begun.previous.content)
    assert origin(output.student).previous == begun.previous.content
