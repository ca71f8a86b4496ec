"""The student's training on Ray Train: the only place that calls it.

Workers train (`student/loop.py`), the driver picks the best checkpoint by held-out KL. The run's name is a
fingerprint of everything that changes the result, so the same configuration resumes and another one starts anew.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muki_ray import filesystem as locations
from muki_ray.config import TrainingConfig
from muki_ray.errors import ResourceError, StoreError, UserError
from muki_ray.planning import equal_share
from muki_ray.runtime import Messenger, user_error
from muki_ray.store import fingerprint
from muki_ray.student.loop import UNJUDGED, TrainingJob, run

# part of the run's name: raise it when training changes
TRAINING_FORMAT = 3
# more threads than this one worker's matrices do not use
_MOST_CPUS = 16


@dataclass(frozen=True)
class Trained:
    """Where the best checkpoint lies, and the metrics of its epoch."""

    checkpoint: str
    metrics: dict[str, float]


class RayWorld:
    """A Ray Train worker among the others; see `loop.World`."""

    def __init__(self, messenger: Messenger) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.train, self.torch_train, self.messenger = ray.train, ray.train.torch, messenger
        self.rank, self.size = context.get_world_rank(), context.get_world_size()
        self.device = self.torch_train.get_device()
        self.open = ExitStack()

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
        if metrics["held_out_kl"] < UNJUDGED:
            self.messenger.send("epoch", metrics)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            self.train.report(
                metrics,
                checkpoint=self.train.Checkpoint.from_directory(folder),
                # Ray's own copying notices no failure of an object store
                checkpoint_upload_fn=None if self._on_disk() else self._upload,
            )

    def _on_disk(self) -> bool:
        return locations.is_local(self.train.get_context().get_storage().storage_filesystem)

    def _upload(self, checkpoint: Any, name: str) -> Any:
        """Copy a local checkpoint to the run's storage."""
        storage = self.train.get_context().get_storage()
        place = storage.build_checkpoint_path_from_name(name)
        locations.copy_folder(checkpoint.filesystem, checkpoint.path, storage.storage_filesystem, place)
        return self.train.Checkpoint(place, storage.storage_filesystem)

    def resume(self) -> Path | None:
        """The latest checkpoint, which need not be the best; on this machine until `close`."""
        checkpoint = self.train.get_checkpoint()
        return None if checkpoint is None else Path(self.open.enter_context(checkpoint.as_directory()))

    def close(self) -> None:
        """Remove the local copy of a remote checkpoint."""
        self.open.close()

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        """Tell the driver."""
        self.messenger.send("step", (done, total, metrics))


def training_name(job: TrainingJob, supervision: str) -> str:
    """The run's name: what changes the result, not where it runs."""
    elsewhere = {"num_workers", "num_cpus", "num_gpus", "accelerator_type", "max_failures"}
    settings = job.training.model_dump(mode="json", exclude=elsewhere)
    # what was not there when earlier trainings were named, and does not change them
    for name in ("start", "checkpoint_steps"):
        if settings[name] == TrainingConfig.model_fields[name].default:
            del settings[name]
    content = [
        TRAINING_FORMAT,
        supervision,
        job.student.content,
        job.student.max_length,
        job.labels,
        settings,
        job.objective.content,
    ]
    previous = job.student.previous
    begun = [] if previous is None else [{"previous": previous.content}]
    return "student-" + fingerprint([*content, job.supervision.weight_scale, *begun])


def worker_cpus(
    training: TrainingConfig, cluster: Mapping[str, float], nodes: Sequence[Mapping[str, float]] = ()
) -> tuple[float, float]:
    """CPUs and GPUs of one worker: as configured, else an equal share of what the cluster has.

    Args:
        cluster: resources by name (`CPU`, `GPU`).
        nodes: the same, node by node: a worker has to fit one. Without, the cluster counts as one node.
    """
    gpus = training.num_gpus if training.num_gpus is not None else min(1.0, cluster.get("GPU", 0.0))
    cpus = training.num_cpus
    if cpus is None:
        share = equal_share(nodes or [cluster], training.num_workers, _MOST_CPUS, gpus)
        cpus = float(max(1, int(share)))
    return cpus, gpus


def train_student(
    job: TrainingJob,
    name: str,
    storage: str,
    cluster: Mapping[str, float],
    may_grow: bool,
    messenger: Messenger,
    nodes: Sequence[Mapping[str, float]] = (),
) -> Trained:
    """Train, or go on where an earlier run of the same name stopped; one that had finished is only looked up.

    Args:
        storage: folder or URI, shared by all nodes.
        cluster, nodes: see `worker_cpus`.

    Raises:
        ResourceError: the workers do not fit a cluster that cannot grow.
        UserError: what a worker raised, after its first try: more of them would not mend it.
    """
    from ray.train.torch import TorchTrainer

    finished = _finished(storage, name)
    if finished is not None:
        return finished
    training = job.training
    cpus, gpus = worker_cpus(training, cluster, nodes)
    need_cpus, need_gpus = cpus * training.num_workers, gpus * training.num_workers
    if not may_grow and (need_cpus > cluster.get("CPU", 0) or need_gpus > cluster.get("GPU", 0)):
        raise ResourceError(
            f"training asks for {need_cpus:g} CPUs and {need_gpus:g} GPUs ({training.num_workers} workers), "
            f"this machine offers {cluster.get('CPU', 0):g} and {cluster.get('GPU', 0):g}; "
            "lower training.num_workers, num_cpus or num_gpus"
        )

    def work(config: dict[str, Any]) -> None:
        world = RayWorld(config["messenger"])
        try:
            run(config["job"], world)
        finally:
            world.close()

    for noisy in ("ray.train", "ray.data"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "messenger": messenger},
        scaling_config=_scaling(training, cpus, gpus),
        run_config=_run_config(training, name, storage),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        known = user_error(error)
        if known is not None:
            raise known from None
        raise
    return _best(result, storage)


def _scaling(training: TrainingConfig, cpus: float, gpus: float) -> Any:
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=training.num_workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        accelerator_type=training.accelerator_type,
    )


def _run_config(training: TrainingConfig, name: str, storage: str) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, UserCallback

    class _GiveUp(UserCallback):
        """Ray Train tries again after any failure; an error that only the user can mend ends the run."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                known = user_error(error)
                if known is not None:
                    raise known

    filesystem, path = _storage(storage)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=FailureConfig(max_failures=training.max_failures),
        # Ray keeps the latest beside the best one, whatever its score: a resumed run goes on from there
        checkpoint_config=CheckpointConfig(
            num_to_keep=1, checkpoint_score_attribute="held_out_kl", checkpoint_score_order="min"
        ),
        callbacks=[_GiveUp()],
    )


def _storage(location: str) -> tuple[Any, str]:
    """What Ray Train keeps its state in. In a local folder it uses files in place, if it knows it for local."""
    filesystem, path = locations.open_location(location)
    return (locations.plain(filesystem) if locations.is_local(filesystem) else filesystem), path


def _finished(storage: str, name: str) -> Trained | None:
    """What a run of that name left, if it came to its end."""
    from ray.train import Result

    filesystem, path = _storage(locations.join(storage, name))
    try:
        result = Result.from_path(path, storage_filesystem=filesystem)
    except RuntimeError:  # there is no such run
        return None
    except UserError:
        raise
    except Exception as error:  # such as a missing checkpoint: Ray's kind of error has no public name
        raise StoreError(
            f"what Ray Train left in {locations.redact(locations.join(storage, name))} cannot be read "
            f"({error}); delete that folder and run again"
        ) from error
    return _best(result, storage) if (result.metrics or {}).get("finished") else None


def _best(result: Any, storage: str) -> Trained:
    checkpoint, metrics = min(result.best_checkpoints, key=lambda pair: pair[1]["held_out_kl"])
    return Trained(_location(checkpoint, storage), metrics)


def _location(checkpoint: Any, storage: str) -> str:
    """Path or URI of a Ray checkpoint, which Ray knows only as a path in its filesystem."""
    _, root = locations.open_location(storage)
    return locations.join(storage, Path(str(checkpoint.path)).relative_to(root).as_posix())
