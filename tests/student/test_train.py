"""Ray Train: several workers are one, a run resumes from its latest checkpoint, errors keep their one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from muki_ray.config import TrainingConfig
from muki_ray.errors import ResourceError, StoreError, StudentError
from muki_ray.filesystem import open_location
from muki_ray.runtime import Messenger, listening
from muki_ray.store import Folder
from muki_ray.student.export import export
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from muki_ray.student.train import Trained, _location, train_student, training_name, worker_cpus
from tests.student import toy
from tests.student.test_loop import CPU, Recorder

ROWS = 59
CLUSTER = {"CPU": 4.0}


def changed(job: TrainingJob, **settings: Any) -> TrainingJob:
    training = TrainingConfig.model_validate(job.training.model_dump() | settings)
    return replace(job, training=training)


# -- names and resources ---------------------------------------------------------------------------------


def test_the_name_is_what_changes_the_result(tmp_path: Path) -> None:
    job = toy.job(tmp_path, 12, batch_size=8)
    name = training_name(job, "abc")
    assert name.startswith("student-")
    same = [
        changed(job, num_workers=2, num_cpus=3, num_gpus=1, accelerator_type="A100", max_failures=0),
        replace(job, threads=7),
        replace(job, supervision=replace(job.supervision, rank=1, world=2)),
    ]
    assert {training_name(one, "abc") for one in same} == {name}
    others = [
        changed(job, epochs=9),
        changed(job, learning_rate=1e-5),
        changed(job, seed=1),
        changed(job, validation=0.3),
        replace(job, labels=("sport", "business")),
        replace(job, student=replace(job.student, content="0")),
        replace(job, student=replace(job.student, max_length=31)),
        replace(job, supervision=replace(job.supervision, weight_scale=0.5)),
    ]
    once = changed(job, epochs=1)
    others += [once, changed(once, start="streaming"), changed(job, checkpoint_steps=5)]
    names = {training_name(one, "abc") for one in others} | {training_name(job, "abd"), name}
    assert len(names) == len(others) + 2


@pytest.mark.parametrize(
    ("settings", "cluster", "nodes", "expected"),
    [
        ({}, {"CPU": 2}, (), (2, 0)),
        ({}, {"CPU": 64}, (), (16, 0)),
        ({"num_workers": 2}, {"CPU": 3}, (), (1, 0)),
        ({"num_workers": 4}, {"CPU": 2}, (), (1, 0)),
        ({}, {}, (), (1, 0)),
        ({"num_workers": 2}, {"CPU": 12}, [{"CPU": 4}] * 3, (4, 0)),  # a worker lives on one node
        ({"num_workers": 4}, {"CPU": 12}, [{"CPU": 4}] * 3, (2, 0)),
        ({"num_workers": 2}, {"CPU": 16, "GPU": 2}, (), (8, 1)),
        ({"num_workers": 2}, {"CPU": 72, "GPU": 2}, [{"CPU": 64}, {"CPU": 8, "GPU": 2}], (4, 1)),
        ({"num_gpus": 0}, {"CPU": 8, "GPU": 2}, (), (8, 0)),
        ({"num_cpus": 3, "num_gpus": 2}, {"CPU": 8}, (), (3, 2)),
    ],
)
def test_what_one_worker_gets(settings: Any, cluster: Any, nodes: Any, expected: tuple[float, float]) -> None:
    assert worker_cpus(TrainingConfig(batch_size=32, **settings), cluster, nodes) == expected


@pytest.mark.parametrize("settings", [{"num_workers": 8}, {"num_cpus": 5}, {"num_gpus": 1}])
def test_more_than_a_machine_has(settings: Any, tmp_path: Path) -> None:
    job = changed(toy.job(tmp_path, 12), **settings)
    with pytest.raises(ResourceError, match=r"^training asks for .* this machine offers 4 and 0; lower") as e:
        train_student(job, "student-x", str(tmp_path / "runs"), CLUSTER, False, Messenger(None))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("storage", "path", "expected"),
    [
        ("/runs/checkpoints", "/runs/checkpoints/s/c_1", "/runs/checkpoints/s/c_1"),
        (
            "file:///my%20runs/checkpoints",
            "/my runs/checkpoints/s/c_1",
            "file:///my%20runs/checkpoints/s/c_1",
        ),
        (
            "s3://bucket/run/checkpoints?region=eu&endpoint_override=h:1&scheme=http",
            "bucket/run/checkpoints/s/c_1",
            "s3://bucket/run/checkpoints/s/c_1?region=eu&endpoint_override=h:1&scheme=http",
        ),
    ],
)
def test_where_a_checkpoint_lies(storage: str, path: str, expected: str) -> None:
    """Ray knows it as a path in a filesystem; the scheme and options come back."""
    from ray.train import Checkpoint

    assert _location(Checkpoint(path, open_location(storage)[0]), storage) == expected


# -- Ray Train -------------------------------------------------------------------------------------------


@dataclass
class _Fit:
    """One training on two workers, and the same in this process."""

    job: TrainingJob
    trained: Trained
    storage: Path
    messages: list[tuple[str, Any]]
    alone: Recorder


@pytest.fixture(scope="module")
def fit(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> _Fit:
    """Held-out rows say the opposite of the others: the first epoch is the best, the second the latest."""
    folder = tmp_path_factory.mktemp("fit")
    job = toy.job(folder, ROWS, epochs=2, batch_size=6)
    _write(job, flip=True)
    assert job.supervision.split.train_rows % 6 == 1, "in the last batch one of the two workers is idle"
    alone = Recorder(folder / "alone", device=CPU)
    run(job, alone)
    storage, messages = folder / "runs", []
    with listening(lambda *message: messages.append(message), every=0.1) as messenger:
        two = changed(job, num_workers=2, micro_batch_size=2)
        trained = train_student(two, "student-1", str(storage), CLUSTER, False, messenger)
    return _Fit(job, trained, storage, messages, alone)


def _write(job: TrainingJob, flip: bool = False, weight: float = 1.0) -> None:
    """The toy task again, at the place that the job reads."""
    texts, targets = toy.separable(ROWS)
    held = job.supervision.split.held_out(np.array([3 * i + 1 for i in range(ROWS)]))
    if flip:
        targets = np.where(held[:, None], targets[:, ::-1], targets)
    weights = np.where(held, 1.0, weight).astype(np.float32)
    toy.write(job.supervision.folder.location, job.supervision.rows_per_part, texts, targets, weights)


@pytest.mark.heavy
def test_two_workers_are_one(fit: _Fit) -> None:
    epochs = [content for kind, content in fit.messages if kind == "epoch"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    for own, other in zip(epochs, fit.alone.epochs, strict=True):
        assert own == pytest.approx(other, rel=1e-3)
    steps = fit.job.supervision.steps(6) * 2
    progress = [content for kind, content in fit.messages if kind == "step"]
    assert [done for done, _, _ in progress] == list(range(1, steps + 1))
    best, alone = (
        load_file(Path(f) / "model.safetensors") for f in (fit.trained.checkpoint, fit.alone.folder)
    )
    assert best.keys() == alone.keys()
    for name, tensor in best.items():
        assert torch.allclose(tensor, alone[name], atol=1e-4, rtol=0), name


@pytest.mark.heavy
def test_the_best_checkpoint_is_the_product(fit: _Fit, tmp_path: Path) -> None:
    kls = [epoch["held_out_kl"] for epoch in fit.alone.epochs]
    assert kls[0] < kls[1]
    assert fit.trained.metrics["epoch"] == 1
    assert fit.trained.metrics["held_out_kl"] == pytest.approx(kls[0], rel=1e-3)
    export(fit.trained.checkpoint, Folder(str(tmp_path / "student")))
    assert not (tmp_path / "student" / STATE_FILE).exists()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert model.config.id2label == {0: "business", 1: "sport"}
    with torch.no_grad():
        assert model(**tokenizer(["goal"], return_tensors="pt")).logits.shape == (1, 2)


def _snapshot(fit: _Fit) -> Path:
    return fit.storage / "student-1" / "checkpoint_manager_snapshot.json"


@pytest.mark.heavy
def test_the_latest_checkpoint_is_kept_beside_the_best(fit: _Fit) -> None:
    kept = [path for path in (fit.storage / "student-1").iterdir() if path.name.startswith("checkpoint_2")]
    epochs = [torch.load(path / STATE_FILE, weights_only=True)["epoch"] for path in kept]
    assert sorted(epochs) == [1, 2]
    latest = json.loads(_snapshot(fit).read_text())["latest_checkpoint_result"]
    assert latest["metrics"]["epoch"] == 2


@pytest.mark.heavy
def test_the_same_name_again_trains_nothing(fit: _Fit) -> None:
    """No supervision, no mailbox, no CPUs: it could not."""
    nowhere = replace(fit.job.supervision, folder=Folder("/nowhere"))
    again = train_student(
        replace(fit.job, supervision=nowhere), "student-1", str(fit.storage), {}, False, Messenger(None)
    )
    assert again == fit.trained


@pytest.mark.heavy
def test_a_checkpoint_that_is_gone_is_said(fit: _Fit, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    shutil.copytree(fit.storage, storage)
    shutil.rmtree(storage / "student-1" / Path(fit.trained.checkpoint).name)
    with pytest.raises(
        StoreError, match=rf"^what Ray Train left in {storage}/student-1 cannot .* delete that"
    ):
        train_student(fit.job, "student-1", str(storage), CLUSTER, False, Messenger(None))


@pytest.mark.heavy
def test_it_resumes_from_the_latest_and_user_errors_keep_their_line(fit: _Fit, tmp_path: Path) -> None:
    """As if the run had been killed after its second of three epochs; then a NaN spoils the third."""
    storage = tmp_path / "runs"
    shutil.copytree(fit.storage, storage)
    snapshot = storage / "student-1" / _snapshot(fit).name
    snapshot.write_text(snapshot.read_text().replace('"finished":1.0', '"finished":0.0'))
    assert '"finished":0.0' in snapshot.read_text().replace(" ", "")
    messages: list[tuple[str, Any]] = []
    _write(fit.job, weight=float("nan"))
    job = changed(fit.job, epochs=3, max_failures=3)
    with (
        listening(lambda *message: messages.append(message), every=0.1) as messenger,
        pytest.raises(StudentError) as failure,
    ):
        train_student(job, "student-1", str(storage), CLUSTER, False, messenger)
    assert type(failure.value) is StudentError
    assert str(failure.value) == (
        "training diverged in epoch 3 (held-out KL nan); lower training.learning_rate (0.003)"
    )
    steps = fit.job.supervision.steps(6)
    seen = [content[0] for kind, content in messages if kind == "step"]
    assert seen == list(range(2 * steps + 1, 3 * steps + 1)), "from the third epoch on, and only once"
