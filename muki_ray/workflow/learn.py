"""The student: trained on the supervision, unless the same training is there already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from muki_ray.progress import Progress, say
from muki_ray.runtime import Cluster, listening
from muki_ray.store import Folder
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.export import export, exported
from muki_ray.student.loop import TrainingJob
from muki_ray.student.objectives import objective_of
from muki_ray.student.train import Trained, train_student, training_name, worker_cpus
from muki_ray.workflow.run import Run

# points of the training curves in MLflow
_CURVE_POINTS = 200
# Ray Train looks every two seconds whether its workers are well or have ended, and starts processes that watch for
# nodes being taken away and count its own steps: on a machine of one's own that is seconds of waiting
_ALONE = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def train(run: Run, folder: Folder, facts: dict[str, Any], cluster: Cluster) -> str:
    """Train the student, unless it is there already; returns the training's name."""
    config = run.config
    cpus, gpus = worker_cpus(config.training, cluster.resources, cluster.nodes)
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
    name = training_name(job, folder.location.rsplit("/", 1)[-1])
    student = run.folder.student
    if exported(student) == name:
        say(f"training: reused, {student.location} is up to date")
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
    with Progress("training", total) as progress:

        def handle(kind: str, content: Any) -> None:
            if kind == "step":
                done, _, metrics = content
                progress.update(min(done * training.batch_size, total), f"KL {metrics['train_kl']:.4f}")
                if done % every == 0 or done == steps:
                    run.tracker.metrics({"training": metrics}, step=done)
            elif kind == "epoch":
                losses = {"epoch_train_kl": content["train_kl"], "held_out_kl": content["held_out_kl"]}
                run.tracker.metrics({"training": losses}, step=content["step"])
                say(
                    f"epoch {content['epoch']}/{training.epochs}: train KL {content['train_kl']:.4f}, "
                    f"held-out KL {content['held_out_kl']:.4f}"
                )

        with _quick_to_notice(cluster), listening(handle) as messenger:
            return train_student(
                job,
                name,
                run.folder.checkpoints,
                cluster.resources,
                cluster.may_grow,
                messenger,
                cluster.nodes,
            )


@contextmanager
def _quick_to_notice(cluster: Cluster) -> Iterator[None]:
    """Ray Train without idle seconds, on a cluster that this process started; what the user has set stays."""
    ours = {} if cluster.may_grow else {k: v for k, v in _ALONE.items() if k not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
