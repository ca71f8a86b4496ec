"""The student's training on Ray Train: the only place that calls it.

Workers train (`student/loop.py`), the driver picks the best checkpoint by held-out KL. The run's name is a
fingerprint of everything that changes the result, so the same configuration resumes and another one starts anew.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muki_ray import filesystem as locations
from muki_ray.config import TrainingConfig
from muki_ray.errors import ResourceError, StudentError
from muki_ray.runtime import Messenger, user_error
from muki_ray.store import fingerprint
from muki_ray.student.loop import TrainingJob, run

# part of the run's name: raise it when training changes
TRAINING_FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """Where the best checkpoint lies, and the metrics of every epoch."""

    checkpoint: str
    epochs: list[dict[str, float]]


class RayWorld:
    """A Ray Train worker among the others; see `loop.World`."""

    def __init__(self, messenger: Messenger) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.train, self.torch_train, self.messenger = ray.train, ray.train.torch, messenger
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = self.torch_train.get_device()
        self.resumed: Any = None

    def wrap(self, model: Any) -> Any:
        """DistributedDataParallel where there are others."""
        return self.torch_train.prepare_model(model, move_to_device=False) if self.size > 1 else model

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all workers."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def report(self, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """A barrier: all workers report, rank 0 with the checkpoint."""
        if self.rank:
            self.train.report(metrics)
            return
        self.messenger.send("epoch", metrics)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            self.train.report(metrics, checkpoint=self.train.Checkpoint.from_directory(folder))

    def resume(self) -> Path | None:
        """The latest checkpoint, copied to this machine for the length of the training."""
        checkpoint = self.train.get_checkpoint()
        if checkpoint is None:
            return None
        self.resumed = checkpoint.as_directory()
        return Path(self.resumed.__enter__())

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Tell the driver."""
        self.messenger.send("step", (done, total, metrics))


def training_name(job: TrainingJob, supervision: str) -> str:
    """The run's name: what changes the result, not where it runs."""
    elsewhere = {"num_workers", "num_cpus", "num_gpus", "accelerator_type", "max_failures"}
    settings = job.training.model_dump(mode="json", exclude=elsewhere)
    content = [
        TRAINING_FORMAT,
        supervision,
        job.student.content,
        job.student.max_length,
        job.labels,
        settings,
    ]
    return "student-" + fingerprint([*content, job.supervision.weight_scale])


def worker_cpus(training: TrainingConfig, cluster: Mapping[str, float]) -> tuple[float, float]:
    """CPUs and GPUs of one worker: as configured, else an equal share of what the cluster has."""
    gpus = training.num_gpus if training.num_gpus is not None else min(1.0, cluster.get("GPU", 0.0))
    share = int(cluster.get("CPU", 1.0)) // training.num_workers
    cpus = training.num_cpus or float(max(1, min(share, 16)))
    return cpus, gpus


def train_student(
    job: TrainingJob,
    name: str,
    storage: str,
    cluster: Mapping[str, float],
    may_grow: bool,
    messenger: Messenger,
) -> Trained:
    """Train, or go on where an earlier run of the same name stopped.

    Args:
        storage: folder or URI, shared by all nodes.

    Raises:
        ResourceError: the workers do not fit a cluster that cannot grow.
        StudentError: training failed for good, with the reason of the last failure.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    training = job.training
    cpus, gpus = worker_cpus(training, cluster)
    need_cpus, need_gpus = cpus * training.num_workers, gpus * training.num_workers
    if not may_grow and (need_cpus > cluster.get("CPU", 0) or need_gpus > cluster.get("GPU", 0)):
        raise ResourceError(
            f"training asks for {need_cpus:g} CPUs and {need_gpus:g} GPUs ({training.num_workers} workers), this machine offers "
            f"{cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}; lower training.num_workers, num_cpus or num_gpus"
        )

    def work(config: dict[str, Any]) -> None:
        run(config["job"], RayWorld(config["messenger"]))

    scaling = ray.train.ScalingConfig(
        num_workers=training.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        accelerator_type=training.accelerator_type,
    )
    filesystem, path = locations.open_location(storage)
    config = ray.train.RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=1, checkpoint_score_attribute="held_out_kl", checkpoint_score_order="min"
        ),
    )
    for noisy in ("ray.train", "ray.data"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "messenger": messenger},
        scaling_config=scaling,
        run_config=config,
    )
    try:
        result = trainer.fit()
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    if result.error is not None:
        known = user_error(result.error)
        raise known or StudentError(
            f"training failed: {str(result.error).strip().splitlines()[-1]}"
        ) from result.error
    best = min(result.best_checkpoints, key=lambda pair: pair[1]["held_out_kl"])
    return Trained(_location(best[0], storage), [m for _, m in result.best_checkpoints])


def _location(checkpoint: Any, storage: str) -> str:
    """Path or URI of a Ray checkpoint, with the scheme that Ray dropped."""
    scheme = locations.scheme(storage)
    path = str(checkpoint.path)
    return f"{scheme}://{path}" if scheme and not locations.scheme(path) else path


def clean_state(folder: str, names: list[str]) -> None:
    """Remove training state from an exported checkpoint."""
    filesystem, path = locations.open_location(folder)
    for name in names:
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")
