"""The training loop in this process: it learns, repeats itself, resumes, stops, and says when it diverged."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from muki_ray.config import TrainingConfig
from muki_ray.errors import StudentError
from muki_ray.student import loop
from muki_ray.student.data import Batch
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from muki_ray.student.model import build_student
from muki_ray.student.solo import Solo
from muki_ray.teachers.capture import UncapturableError
from tests.student import toy

CPU = torch.device("cpu")


@dataclass
class Recorder(Solo):
    """Solo that remembers every epoch's metrics."""

    epochs: list[dict[str, float]] = field(default_factory=list)

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        self.epochs.append(metrics)
        super().report(metrics, save)


@dataclass
class Resumable(Recorder):
    """Keeps the latest checkpoint, whatever its score; starts from it; may be killed after an epoch or a step."""

    dies_after: int | None = None
    dies_at: int | None = None

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        self.epochs.append(metrics)
        self.folder.mkdir(exist_ok=True)
        save(self.folder)
        if metrics["epoch"] == self.dies_after or metrics["step"] == self.dies_at:
            raise KeyboardInterrupt

    def resume(self) -> Path | None:
        return self.folder if self.folder.is_dir() else None


def recorder(folder: Path) -> Recorder:
    return Recorder(folder, device=CPU)


def trained(job: TrainingJob, folder: Path) -> dict[str, torch.Tensor]:
    run(job, recorder(folder))
    return load_file(folder / "model.safetensors")


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], atol=atol, rtol=0), name


def trainer(job: TrainingJob, world: Any) -> Any:
    model, tokenizer = build_student(job.student, list(job.labels), 0, 0.0)
    return loop._Trainer(model.to(world.device), tokenizer, job, world, total_steps=100)


# -- learning --------------------------------------------------------------------------------------------


def test_it_learns_and_saves_the_best(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=6, learning_rate=1e-2)
    world = recorder(tmp_path / "best")
    at_start = trainer(job, world).held_out_kl(job.supervision.held_out(8))
    run(job, world)
    kls = [epoch["held_out_kl"] for epoch in world.epochs]
    assert at_start > 0.4, "two even labels cost log 2 - H(0.95, 0.05) = 0.495"
    assert min(kls) < 0.1 * at_start
    # what was saved is the best, whole, and named
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(world.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.folder)
    assert model.config.id2label == {0: "business", 1: "sport"}
    with torch.no_grad():
        answers = model(
            **tokenizer(["goal match cup", "bank market"], padding=True, return_tensors="pt")
        ).logits
    assert answers.argmax(-1).tolist() == [1, 0]
    saved = torch.load(world.folder / STATE_FILE, weights_only=True)
    assert saved["best"] == min(kls)
    assert saved["epoch"] == kls.index(min(kls)) + 1
    assert not list(tmp_path.glob(".best*"))


def test_metrics_and_progress(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=2, batch_size=16)
    seen: list[tuple[int, int, dict[str, float]]] = []
    world = Recorder(tmp_path / "best", on_progress=lambda *message: seen.append(message), device=CPU)
    run(job, world)
    steps = job.supervision.steps(16)
    assert [done for done, _, _ in seen] == list(range(1, 2 * steps + 1))
    assert {total for _, total, _ in seen} == {2 * steps}
    assert seen[steps - 1][2]["train_kl"] == pytest.approx(world.epochs[0]["train_kl"])
    assert [epoch["step"] for epoch in world.epochs] == [steps, 2 * steps]
    assert [epoch["finished"] for epoch in world.epochs] == [0.0, 1.0]
    assert [epoch["epoch"] for epoch in world.epochs] == [1, 2]


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=1, dropout=0.1)
    first = trained(job, tmp_path / "a")
    close(first, trained(job, tmp_path / "b"), atol=0)
    other = replace(job, training=job.training.model_copy(update={"seed": 1}))
    assert not torch.equal(first["classifier.weight"], trained(other, tmp_path / "c")["classifier.weight"])


@pytest.mark.parametrize("size", [1, 3, 7])  # 8 rows by 7 leave one alone
def test_accumulated_gradients_are_the_whole_batch(size: int, tmp_path: Path) -> None:
    whole = toy.job(tmp_path, epochs=1)
    parts = replace(whole, training=whole.training.model_copy(update={"micro_batch_size": size}))
    close(trained(whole, tmp_path / "a"), trained(parts, tmp_path / "b"), atol=1e-5)


def test_rows_of_weight_zero_do_not_count(tmp_path: Path) -> None:
    rows = 96
    weights = np.where(np.arange(rows) % 4 == 0, 0.0, 1.0).astype(np.float32)
    job = toy.job(tmp_path, rows, weights, epochs=1)
    first = trained(job, tmp_path / "a")
    texts, targets = toy.separable(rows)
    wrong = np.where(weights[:, None] == 0, targets[:, ::-1], targets)
    toy.write(tmp_path / "supervision", [32, 32, 32], texts, wrong, weights)
    close(first, trained(job, tmp_path / "b"), atol=0)
    toy.write(tmp_path / "supervision", [32, 32, 32], texts, wrong, np.ones(rows, np.float32))
    counted = trained(job, tmp_path / "c")
    assert not torch.allclose(first["classifier.weight"], counted["classifier.weight"], atol=1e-5)


def test_the_scale_of_the_weights(tmp_path: Path) -> None:
    weights = np.full(96, 0.01, np.float32)
    job = toy.job(tmp_path, 96, weights, epochs=1)
    scaled = replace(job, supervision=replace(job.supervision, weight_scale=0.01))
    plain = toy.job(tmp_path / "plain", 96, None, epochs=1)
    close(trained(scaled, tmp_path / "a"), trained(plain, tmp_path / "b"), atol=1e-6)


def test_the_bound_on_the_gradient_is_torchs(tmp_path: Path) -> None:
    """The optimizer divides by what the norm exceeds: the same step as after `clip_grad_norm_`."""
    for bound in (0.01, 1e6):
        one = trainer(toy.job(tmp_path / str(bound), clip_norm=bound), recorder(tmp_path))
        other = trainer(toy.job(tmp_path / f"other {bound}", clip_norm=bound), recorder(tmp_path))
        generator = torch.Generator().manual_seed(0)
        for mine, theirs in zip(one.plain.parameters(), other.plain.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.clone()
        # a second moment that clipping matters to: Adam's first step forgets the scale
        for each in (one, other):
            each.optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(other.plain.parameters(), bound)
        assert (norm > bound) == (bound == 0.01)
        one._clip()
        for each in (one, other):
            each.optimizer.step()
        for (name, mine), theirs in zip(one.plain.named_parameters(), other.plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6, msg=name)


def test_the_student_is_rewritten(tmp_path: Path) -> None:
    assert trainer(toy.job(tmp_path), recorder(tmp_path)).lean.lean


@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"dropout": 0.0, "precision": "bfloat16"}])
def test_the_rewritten_student_learns_what_the_model_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    job = toy.job(tmp_path, epochs=2, **settings)
    lean = trained(job, tmp_path / "a")

    def refuse(*_: Any) -> Any:
        raise UncapturableError("no graph")

    monkeypatch.setattr("muki_ray.student.lean.capture_once", refuse)
    plain = trained(job, tmp_path / "b")
    exact = settings.get("precision") != "bfloat16"
    if exact:
        close(lean, plain, atol=1e-4)
    else:  # two ways to round: the head goes the same way
        moved, wanted = lean["classifier.weight"].flatten(), plain["classifier.weight"].flatten()
        assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.99


# -- several workers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_summed_gradients_of_the_workers_are_the_gradient_of_one(tmp_path: Path, world: int) -> None:
    """Each worker's step, its gradient averaged over workers, is one worker's step on the whole batch."""
    job = toy.job(tmp_path, 20, batch_size=6, clip_norm=1e9)

    def gradient(rank: int, size: int, number: int) -> dict[str, torch.Tensor]:
        one = trainer(job, replace(recorder(tmp_path), rank=rank, size=size))
        caught: dict[str, torch.Tensor] = {}
        one.optimizer.register_step_pre_hook(
            lambda *_: caught.update({n: p.grad.clone() for n, p in one.plain.named_parameters()})
        )
        one.model.train()
        reader = replace(job.supervision, rank=rank, world=size)
        batch = list(reader.train(0, 6, 0))[number]
        one._step(batch, one._tokenized(batch))
        return caught

    for number in (
        0,
        job.supervision.steps(6) - 1,
    ):  # a full batch, and the last one, where a worker may idle
        whole = gradient(0, 1, number)
        each = [gradient(rank, world, number) for rank in range(world)]
        close(whole, {n: sum(g[n] for g in each) / world for n in whole}, atol=1e-6)  # type: ignore[misc]


def test_the_reported_loss_counts_no_idle_row(tmp_path: Path) -> None:
    job = toy.job(tmp_path, 6, batch_size=4, validation=1e-9, learning_rate=1e-12)
    assert job.supervision.split.train_rows == 5, "one full batch, and one of a single row"
    sums: list[torch.Tensor] = []

    def mean(rank: int, size: int) -> float:
        world = replace(recorder(tmp_path), rank=rank, size=size)

        def total(values: torch.Tensor) -> torch.Tensor:
            sums.append(values)
            return values

        world.total = total  # type: ignore[method-assign]
        one = trainer(job, world)
        return float(one.epoch(replace(job.supervision, rank=rank, world=size).train(0, 4, 0), 2, 0))

    single = mean(0, 1)
    sums.clear()
    for rank in range(4):
        mean(rank, 4)
    total = torch.stack(sums).sum(0)
    assert float(total[1]) == pytest.approx(5)
    assert float(total[0] / total[1]) == pytest.approx(single, rel=1e-4)


# -- resuming and stopping -------------------------------------------------------------------------------


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=3, dropout=0.1, schedule="cosine")
    run(job, Resumable(tmp_path / "whole", device=CPU))
    with pytest.raises(KeyboardInterrupt):
        run(job, Resumable(tmp_path / "halves", device=CPU, dies_after=1))
    second = Resumable(tmp_path / "halves", device=CPU)
    run(job, second)
    assert [epoch["epoch"] for epoch in second.epochs] == [2, 3]
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    close(whole, halves, atol=0)
    third = Resumable(tmp_path / "halves", device=CPU)
    run(job, third)
    assert third.epochs == [], "a finished training has nothing left to do"


def test_a_training_that_was_killed_within_an_epoch_is_the_uninterrupted_one(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=2, dropout=0.1, checkpoint_steps=3)
    steps = job.supervision.steps(8)
    assert steps == 10
    whole = Resumable(tmp_path / "whole", device=CPU)
    run(job, whole)
    assert [m["step"] for m in whole.epochs] == [3, 6, 9, 10, 13, 16, 19, 20]
    assert [m["epoch"] for m in whole.epochs] == [0, 0, 0, 1, 1, 1, 1, 2]
    judged = [m["held_out_kl"] < loop.UNJUDGED for m in whole.epochs]
    assert judged == [False, False, False, True] * 2
    assert {m["finished"] for m in whole.epochs[:-1]} == {0.0}
    steps_seen: list[int] = []
    for death in (6, 16):
        folder = tmp_path / f"killed at {death}"
        with pytest.raises(KeyboardInterrupt):
            run(job, Resumable(folder, device=CPU, dies_at=death))
        steps_seen.clear()
        second = Resumable(folder, device=CPU, on_progress=lambda done, *_: steps_seen.append(done))
        run(job, second)
        assert steps_seen == list(range(death + 1, 21))
        assert second.epochs == [m for m in whole.epochs if m["step"] > death]
        close(*(load_file(one / "model.safetensors") for one in (whole.folder, folder)), atol=0)


def test_a_loss_that_is_no_number_is_not_kept(tmp_path: Path) -> None:
    job = toy.job(tmp_path, weights=np.full(96, np.nan, np.float32), checkpoint_steps=3)
    world = Resumable(tmp_path / "latest", device=CPU)
    with pytest.raises(StudentError, match=r"^training diverged in epoch 1 \(train KL nan\); lower"):
        run(job, world)
    assert world.epochs == []


def test_patience(tmp_path: Path) -> None:
    # nothing is learned at this rate, so that no epoch after the first is better
    job = toy.job(tmp_path, 30, epochs=9, patience=2, learning_rate=1e-30)
    world = Resumable(tmp_path / "latest", device=CPU)
    run(job, world)
    assert [epoch["epoch"] for epoch in world.epochs] == [1, 2, 3]
    assert [epoch["finished"] for epoch in world.epochs] == [0.0, 0.0, 1.0]
    state = torch.load(world.folder / STATE_FILE, weights_only=True)
    assert (state["epoch"], state["bad"]) == (3, 2)
    again = Resumable(tmp_path / "latest", device=CPU)
    run(job, again)
    assert again.epochs == [], "the early stop outlives the process"
    endless = replace(job, training=job.training.model_copy(update={"patience": None, "epochs": 4}))
    world = Resumable(tmp_path / "endless", device=CPU)
    run(endless, world)
    assert len(world.epochs) == 4


def test_divergence_is_said(tmp_path: Path) -> None:
    job = toy.job(tmp_path, epochs=3, learning_rate=1e6, schedule="constant")
    with pytest.raises(
        StudentError, match=r"^training diverged in epoch \d \(held-out KL (nan|inf)\); lower"
    ) as e:
        run(job, recorder(tmp_path / "best"))
    assert "training.learning_rate (1e+06)" in str(e.value)


def test_memory_that_does_not_hold_a_batch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(loop._Trainer, "_step", full)
    with pytest.raises(
        StudentError,
        match=r"^training 3 rows at once does not fit .*\(CUDA out of memory\); set training.micro_batch_size",
    ) as e:
        run(toy.job(tmp_path, batch_size=8, micro_batch_size=3), recorder(tmp_path / "best"))
    assert "\n" not in str(e.value)


def test_half_precision_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(StudentError, match="float16 needs a GPU; use bfloat16 or float32"):
        run(toy.job(tmp_path, precision="float16"), recorder(tmp_path / "best"))


# -- schedules -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        # 10 steps, 2 of them warm-up: thirds, then the rate, then the decay over 8 steps
        ("constant", 0.2, {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 1.0, 9: 1.0}),
        ("linear", 0.2, {0: 1 / 3, 1: 2 / 3, 2: 1.0, 6: 0.5, 9: 1 / 8, 10: 0.0}),
        ("cosine", 0.2, {0: 1 / 3, 2: 1.0, 4: 0.5 + 0.5 * math.sqrt(0.5), 6: 0.5, 10: 0.0}),
        ("linear", 0.0, {0: 1.0, 5: 0.5, 9: 0.1}),
        ("linear", 0.95, {0: 1 / 11, 9: 10 / 11}),
    ],
)
def test_schedule(schedule: Any, warmup: float, expected: dict[int, float], tmp_path: Path) -> None:
    shell = object.__new__(loop._Trainer)
    shell.settings, shell.total_steps = TrainingConfig(schedule=schedule, warmup=warmup), 10
    for step, factor in expected.items():
        assert shell._factor(step) == pytest.approx(factor, abs=1e-12)


def test_the_rate_in_use_is_the_scheduled_one(tmp_path: Path) -> None:
    rates: list[float] = []
    world = Solo(tmp_path / "best", lambda _done, _total, m: rates.append(m["learning_rate"]), device=CPU)
    job = toy.job(tmp_path, 30, epochs=1, learning_rate=1e-3, warmup=0.5, batch_size=4)
    run(job, world)
    steps = job.supervision.steps(4)
    warm = math.ceil(steps / 2)
    expected = [(s + 1) / (warm + 1) if s < warm else 1 - (s - warm) / (steps - warm) for s in range(steps)]
    assert rates == pytest.approx([1e-3 * factor for factor in expected])


# -- the thread that reads ahead -------------------------------------------------------------------------


def _reading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "muki-ray-batches"]


def _endless(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("one")
    return trainer(toy.job(folder, 12), recorder(folder / "best"))


def test_a_step_that_fails_ends_the_reading_thread(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = next(one.job.supervision.train(0, 4, 0))

    def failing(*_: Any) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(one, "_step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        one.epoch(_endless(batch), 1, 0)
    assert not _reading()


def test_micro_batches(one: Any) -> None:
    batch = Batch(
        ["chip"] * 5, ["good bad"] * 5, np.full((5, 2), 0.5, np.float32), np.arange(5, dtype=np.float32), 9
    )
    micro = replace(one.job, training=one.job.training.model_copy(update={"micro_batch_size": 2}))
    shell = object.__new__(loop._Trainer)
    shell.settings, shell.tokenizer, shell.job = micro.training, one.tokenizer, micro
    parts = shell._tokenized(batch)
    assert [len(inputs["input_ids"]) for inputs, _, _ in parts] == [2, 2, 1]
    assert torch.cat([weights for _, _, weights in parts]).tolist() == [0, 1, 2, 3, 4]
    # [CLS] chip [SEP] good bad [SEP]
    assert parts[0][0]["input_ids"].shape == (2, 6)


def test_every_worker_takes_its_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is the same for all workers; who one is, it learns from its world."""
    job = toy.job(tmp_path, 30, epochs=1, batch_size=6)
    taken: dict[int, list[str]] = {}

    def step(self: Any, batch: Batch, micro: Any) -> float:
        taken.setdefault(self.world.rank, []).extend(batch.texts)
        return 0.0

    monkeypatch.setattr(loop._Trainer, "_step", step)
    for rank in range(3):
        run(job, replace(recorder(tmp_path / "best"), rank=rank, size=3))
    everything = [text for batch in job.supervision.train(0, 6, 0) for text in batch.texts]
    assert sorted(text for texts in taken.values() for text in texts) == sorted(everything)
