"""The student: trained on the supervision, unless the same training is there already."""

from __future__ import annotations

import time
from typing import Any

from muki_ray import filesystem as locations
from muki_ray.progress import Progress, say
from muki_ray.runtime import Cluster, heard_here, listening
from muki_ray.store import Folder
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.export import export, exported
from muki_ray.student.here import train_here
from muki_ray.student.loop import TrainingJob
from muki_ray.student.objectives import objective_of
from muki_ray.student.train import Trained, train_student, training_name, worker_cpus
from muki_ray.workflow.run import Run

# points of the training curves in MLflow, and seconds between two times that they are sent
_CURVE_POINTS = 200
_CURVE_EVERY_S = 5.0


def train(run: Run, folder: Folder, facts: dict[str, Any], cluster: Cluster) -> str:
    """Train the student, unless it is there already; returns the training's name."""
    config = run.config
    cpus, gpus = worker_cpus(config.training, cluster.reach, cluster.places)
    split = plan_split(folder, facts["rows_per_part"], config.training.validation, config.training.seed)
    scale = facts["weight_mean"] if config.method.weights == "normalize" else 1.0
    supervision = Supervision(folder, tuple(facts["rows_per_part"]), split, scale)
    teachers = [spec.resolved(on_gpu=gpus > 0) for spec in run.specs]
    job = TrainingJob(
        run.student,
        run.space.names,
        config.training,
        supervision,
        threads=max(1, int(cpus)),
        objective=objective_of(config.method, run.space, teachers),
    )
    name = training_name(job, folder.name)
    student = run.folder.student
    if exported(student) == name:
        say(f"training: reused, {student.shown} is up to date")
        return name
    trained = _watched(run, job, name, cluster)
    export(trained.checkpoint, student)
    return name


def _watched(run: Run, job: TrainingJob, name: str, cluster: Cluster) -> Trained:
    """Train with progress on the terminal and curves in MLflow, both from the workers' messages."""
    training = run.config.training
    total = job.supervision.split.train_rows * training.epochs
    steps = job.supervision.steps(training.batch_size) * training.epochs
    every = max(1, steps // _CURVE_POINTS)
    points: list[tuple[int, dict[str, Any]]] = []
    sent = time.monotonic()
    with Progress("training", total) as progress:

        def draw(step: int, values: dict[str, Any], last: bool) -> None:
            nonlocal sent
            points.append((step, {"training": values}))
            if last or time.monotonic() - sent > _CURVE_EVERY_S:
                run.tracker.curve(points)
                points.clear()
                sent = time.monotonic()

        def handle(kind: str, content: Any) -> None:
            if kind == "step":
                done, _, metrics = content
                progress.update(min(done * training.batch_size, total), f"KL {metrics['train_kl']:.4f}")
                if done % every == 0 or done == steps:
                    draw(done, metrics, last=False)
            elif kind == "epoch":
                losses = {"epoch_train_kl": content["train_kl"], "held_out_kl": content["held_out_kl"]}
                draw(content["step"], losses, last=True)
                say(
                    f"epoch {content['epoch']}/{training.epochs}: train KL {content['train_kl']:.4f}, "
                    f"held-out KL {content['held_out_kl']:.4f}"
                )

        _, gpus = worker_cpus(training, cluster.reach, cluster.places)
        storage = run.folder.checkpoints
        if training.num_workers == 1 and cluster.is_here(gpus) and not locations.scheme(storage):
            with heard_here(handle) as send:
                return train_here(job, name, storage, send, cuda=gpus > 0)
        with listening(handle) as messenger:
            return train_student(
                job, name, storage, cluster.reach, cluster.may_grow, messenger, cluster.places
            )
