"""The student: trained on the supervision, unless the same training is there already."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from muki_ray import filesystem as locations
from muki_ray.config import TrainingConfig
from muki_ray.errors import ResourceError
from muki_ray.planning.nodes import Room
from muki_ray.progress import Progress, say
from muki_ray.runtime import Cluster, heard_here, listening
from muki_ray.store import Folder, RunFolder
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.export import export, exported, origin
from muki_ray.student.here import train_here
from muki_ray.student.loop import TrainingJob
from muki_ray.student.model import Previous, StudentSpec
from muki_ray.student.objectives import objective_of
from muki_ray.student.previous import start
from muki_ray.student.streaming import Stream, Watch, first_weight_mean
from muki_ray.student.train import Trained, train_student, training_name, worker_cpus
from muki_ray.workflow.calibrate import calibrate, is_wanted, temperature_of
from muki_ray.workflow.run import Run

# points of the training curves in MLflow, and seconds between two times that they are sent
_CURVE_POINTS = 200
_CURVE_EVERY_S = 5.0


def reader(run: Run, folder: Folder, facts: dict[str, Any]) -> Supervision:
    """Who reads a finished supervision, as the configuration says: shards in random order, or as a stream."""
    if run.first_shards is not None:
        return stream_reader(run, folder, run.first_shards, None)
    training, rows_per_part = run.config.training, facts["rows_per_part"]
    split = plan_split(folder, rows_per_part, training.validation, training.seed)
    scale = facts["weight_mean"] if run.config.method.weights == "normalize" else 1.0
    return Supervision(folder, tuple(rows_per_part), split, scale)


def stream_reader(run: Run, folder: Folder, first: int, watch: Watch | None) -> Stream:
    """Who reads a supervision as a stream; its first shards have to be there.

    Args:
        first: shards that say what the mean weight is.
    """
    training, rows_per_part = run.config.training, run.corpus.rows_per_part
    split = plan_split(run.corpus.folder, list(rows_per_part), training.validation, training.seed)
    scale = first_weight_mean(folder, first) if run.config.method.weights == "normalize" else 1.0
    return Stream(folder, rows_per_part, split, scale, watch=watch)


def train(
    run: Run, supervision: Supervision, cluster: Cluster, beside: Callable[[], str] | None = None
) -> str:
    """Train the student, unless it is there already; returns the training's name.

    Args:
        beside: says on the progress line what else is going on.
    """
    config, job, student = run.config, _job(run, supervision, cluster), run.folder.student

    def named(one: StudentSpec) -> str:
        return training_name(replace(job, student=one), supervision.folder.name)

    job = replace(job, student=start(config.student.init, run.folder, run.student, named))
    name, wanted = named(job.student), is_wanted(run, job.objective)
    # one that is calibrated and should not be, or the other way round, is exported again: that trains nothing
    if exported(student) == name and wanted == (temperature_of(student) is not None):
        say(f"training: reused, {student.shown} is up to date")
        return name
    if config.student.init != "base":
        say(_beginning(job.student, student))
    trained = _watched(run, job, name, cluster, beside or (lambda: ""))
    previous = job.student.previous
    export(trained.checkpoint, student, previous.content if previous else None)
    if wanted:
        calibrate(run, supervision, cluster)
    return name


def _job(run: Run, supervision: Supervision, cluster: Cluster) -> TrainingJob:
    """The training that the configuration asks for, from the base model."""
    config = run.config
    cpus, gpus = worker_cpus(config.training, cluster.reach, cluster.places)
    teachers = [spec.resolved(on_gpu=gpus > 0) for spec in run.specs]
    return TrainingJob(
        run.student,
        run.space.names,
        config.training,
        supervision,
        threads=max(1, int(cpus)),
        objective=objective_of(config.method, run.space, teachers),
    )


def is_trained_so(run: Run, supervision: Supervision, cluster: Cluster) -> bool:
    """Whether the finished student is what this training gives, from whatever student it was begun."""
    made = origin(run.folder.student)
    begun = None if made.previous is None else Previous("", made.previous)
    job = _job(run, supervision, cluster)
    return made.training == training_name(
        replace(job, student=replace(job.student, previous=begun)), supervision.folder.name
    )


def _beginning(spec: StudentSpec, student: Folder) -> str:
    if spec.previous is not None:
        return f"training: starts from the student in {locations.redact(spec.previous.location)}"
    return f"training: starts from the base model, for there is no finished student in {student.shown} yet"


def check_room(training: TrainingConfig, folder: RunFolder, cluster: Cluster) -> None:
    """That the student's workers find a place, before teachers take hours to score for it.

    Raises:
        ResourceError: they do not, and no autoscaler may add what they need.
    """
    if trains_here(training, folder, cluster):  # this process asks Ray for nothing
        return
    cpus, gpus = worker_cpus(training, cluster.reach, cluster.places)
    known = bool(cluster.may_add) or not cluster.may_grow
    room = Room(cluster.places or (cluster.reach,))
    if known and not room.take(training.num_workers, cpus, gpus, training.accelerator_type):
        kind = f" of type {training.accelerator_type!r}" if training.accelerator_type else ""
        raise ResourceError(
            f"training asks for {training.num_workers} workers with {cpus:g} CPUs and {gpus:g} GPUs{kind} each, which do not "
            f"fit the {cluster.reach.get('CPU', 0):g} CPUs and {cluster.reach.get('GPU', 0):g} GPUs that there are or may "
            "come; change training.num_workers, num_cpus, num_gpus or accelerator_type, or use a larger cluster"
        )


def trains_here(training: TrainingConfig, folder: RunFolder, cluster: Cluster) -> bool:
    """Whether the student trains in this process: there is one worker, on a machine of its own."""
    _, gpus = worker_cpus(training, cluster.reach, cluster.places)
    return training.num_workers == 1 and cluster.is_here(gpus) and not locations.scheme(folder.checkpoints)


def _watched(run: Run, job: TrainingJob, name: str, cluster: Cluster, beside: Callable[[], str]) -> Trained:
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
                note = f"KL {metrics['train_kl']:.4f}{beside()}"
                progress.update(min(done * training.batch_size, total), note)
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
        if trains_here(training, run.folder, cluster):
            with heard_here(handle) as send:
                return train_here(job, name, storage, send, cuda=gpus > 0)
        with listening(handle) as messenger:
            return train_student(
                job, name, storage, cluster.reach, cluster.may_grow, messenger, cluster.places
            )
