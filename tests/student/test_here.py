"""Training in the driver's process: the same student as elsewhere, the latest and the best kept, a killed one goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from muki_ray.errors import StudentError
from muki_ray.store import Folder
from muki_ray.student import here
from muki_ray.student.here import METRICS_FILE, Here, train_here
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from tests.student import toy
from tests.student.test_loop import CPU, Recorder


class Heard(list[tuple[str, Any]]):
    """Messages, in the order they came."""

    def __call__(self, kind: str, content: Any) -> None:
        self.append((kind, content))

    def of(self, kind: str) -> list[Any]:
        return [content for one, content in self if one == kind]


def epochs_kept(storage: Path) -> list[str]:
    return sorted(path.name for path in (storage / "s-here").iterdir())


def flipped(tmp_path: Path, **settings: object) -> TrainingJob:
    """Held-out rows say the opposite of the others: every epoch is worse than the one before."""
    job = toy.job(tmp_path, 60, **settings)
    texts, targets = toy.separable(60)
    held = job.supervision.split.held_out(np.array([3 * i + 1 for i in range(60)]))
    targets = np.where(held[:, None], targets[:, ::-1], targets)
    toy.write(job.supervision.folder.location, job.supervision.rows_per_part, texts, targets)
    return job


def test_it_is_the_loop_and_tells_every_step(tmp_path: Path) -> None:
    job, heard = toy.job(tmp_path, 60, epochs=2), Heard()
    alone = Recorder(tmp_path / "alone", device=CPU)
    run(job, alone)
    trained = train_here(job, "s", str(tmp_path / "runs"), heard, cuda=False)
    assert heard.of("epoch") == alone.epochs
    steps = 2 * job.supervision.steps(job.training.batch_size)
    assert [done for done, _, _ in heard.of("step")] == list(range(1, steps + 1))
    ours, other = (load_file(Path(f) / "model.safetensors") for f in (trained.checkpoint, alone.folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in ours.items())


def test_the_best_is_the_product_and_the_latest_stays_beside_it(tmp_path: Path) -> None:
    heard = Heard()
    trained = train_here(flipped(tmp_path, epochs=3), "s", str(tmp_path / "runs"), heard, cuda=False)
    kls = [epoch["held_out_kl"] for epoch in heard.of("epoch")]
    assert kls[0] < kls[1] < kls[2]
    assert (trained.metrics["epoch"], trained.metrics["held_out_kl"]) == (1, kls[0])
    assert epochs_kept(tmp_path / "runs") == ["epoch-00001", "epoch-00003"]


def test_the_same_name_again_trains_nothing(tmp_path: Path) -> None:
    job = toy.job(tmp_path, 60, epochs=1)
    first = train_here(job, "s", str(tmp_path / "runs"), Heard(), cuda=False)
    nowhere = replace(job, supervision=replace(job.supervision, folder=Folder("/nowhere")))
    heard = Heard()
    assert train_here(nowhere, "s", str(tmp_path / "runs"), heard, cuda=False) == first
    assert heard == []


@pytest.mark.parametrize("moment", ["after", "within"])
def test_a_killed_training_goes_on_after_the_last_whole_epoch(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the second epoch was saved, or while it was being saved."""
    job = flipped(tmp_path, epochs=3)
    undisturbed = train_here(job, "s", str(tmp_path / "other"), Heard(), cuda=False)
    report = Here.report

    def dying(self: Here, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        def half(folder: Path) -> None:
            save(folder)
            (folder / STATE_FILE).write_bytes(b"half")
            raise KeyboardInterrupt

        second = metrics["epoch"] == 2
        report(self, metrics, half if second and moment == "within" else save)
        if second:
            raise KeyboardInterrupt

    monkeypatch.setattr(here.Here, "report", dying)
    with pytest.raises(KeyboardInterrupt):
        train_here(job, "s", str(tmp_path / "runs"), Heard(), cuda=False)
    monkeypatch.undo()
    heard = Heard()
    trained = train_here(job, "s", str(tmp_path / "runs"), heard, cuda=False)
    steps = job.supervision.steps(job.training.batch_size)
    assert heard.of("step")[0][0] == 1 + steps * (2 if moment == "after" else 1)
    assert trained.metrics == undisturbed.metrics
    assert ".new" not in epochs_kept(tmp_path / "runs")


def test_within_an_epoch_the_latest_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = toy.job(tmp_path, 60, epochs=2, checkpoint_steps=2)
    steps = job.supervision.steps(job.training.batch_size)
    undisturbed, heard = train_here(job, "s", str(tmp_path / "other"), Heard(), cuda=False), Heard()
    report = Here.report

    def dying(self: Here, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        report(self, metrics, save)
        if metrics["step"] == steps + 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(here.Here, "report", dying)
    with pytest.raises(KeyboardInterrupt):
        train_here(job, "s", str(tmp_path / "runs"), heard, cuda=False)
    monkeypatch.undo()
    assert epochs_kept(tmp_path / "runs") == ["epoch-00001", f"epoch-00001-step-{steps + 4:09d}"]
    assert len(heard.of("epoch")) == 1, "nobody hears of what is not judged"
    heard.clear()
    trained = train_here(job, "s", str(tmp_path / "runs"), heard, cuda=False)
    assert heard.of("step")[0][0] == steps + 5
    assert trained.metrics == undisturbed.metrics
    assert not [name for name in epochs_kept(tmp_path / "runs") if "step" in name]


def test_killed_while_an_epoch_is_thrown_away_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = flipped(tmp_path, epochs=4)
    undisturbed = train_here(job, "s", str(tmp_path / "other"), Heard(), cuda=False)
    rmtree = shutil.rmtree

    def dying(folder: Path, ignore_errors: bool = False) -> None:
        if ignore_errors:
            rmtree(folder, ignore_errors=True)
        else:
            (folder / METRICS_FILE).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(here.shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        train_here(job, "s", str(tmp_path / "runs"), Heard(), cuda=False)
    monkeypatch.undo()
    trained = train_here(job, "s", str(tmp_path / "runs"), Heard(), cuda=False)
    assert trained.metrics == undisturbed.metrics
    assert epochs_kept(tmp_path / "runs") == epochs_kept(tmp_path / "other")


def test_threads_are_given_back_also_where_it_diverges(tmp_path: Path) -> None:
    job = toy.job(tmp_path, 60, weights=np.full(60, np.nan, np.float32))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(StudentError, match=r"^training diverged in epoch 1"):
            train_here(job, "s", str(tmp_path / "runs"), Heard(), cuda=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_metrics_lie_in_the_checkpoint(tmp_path: Path) -> None:
    trained = train_here(toy.job(tmp_path, 60, epochs=1), "s", str(tmp_path / "runs"), Heard(), cuda=False)
    assert json.loads((Path(trained.checkpoint) / METRICS_FILE).read_text()) == trained.metrics
