"""One job for all tests over several nodes: its models and texts, the local run that all must equal, a run to disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from noted_job import Begun, begun

from muki_ray import workflow
from muki_ray.config import IntegrateConfig, to_yaml
from muki_ray.runtime import Cluster, _cluster
from tests import runs

ROWS, SHARD_ROWS = 640, 32
SHARDS = ROWS // SHARD_ROWS
GPUS = {"one": "A100", "two": "T4"}  # the type of fake GPU that each teacher is pinned to


@dataclass(frozen=True)
class Material:
    """Models, texts, and the run folder that one machine made of them.

    Attributes:
        evidence: name of each teacher's evidence folder; the same wherever it is made.
    """

    root: Path
    corpus: Path
    alone: Path
    evidence: dict[str, str]

    def config(self, output: Path, **changes: Any) -> IntegrateConfig:
        """The job, each teacher pinned to a GPU of its own type."""
        return _config(self.root, self.corpus, output, pinned=True, **changes)


def _config(root: Path, corpus: Path, output: Path, pinned: bool, **changes: Any) -> IntegrateConfig:
    def resources(kind: str) -> dict[str, Any]:
        gpu = {"num_gpus": 1, "accelerator_type": kind, "num_cpus": 0.5, "max_actors": 1}
        return {"threads": 1, **(gpu if pinned else {})}

    teachers = [
        {"name": name, "model": str(root / name), "dtype": "float32", "resources": resources(kind)}
        for name, kind in GPUS.items()
    ]
    return runs.config(
        root, output, corpus, names=(), teachers=teachers, method={"samples": 4},
        corpus={"path": str(corpus), "shard_rows": SHARD_ROWS},
        training={
            "epochs": 1, "precision": "float32", "learning_rate": 1e-3, "num_cpus": 1, "num_gpus": 0
        }, **changes,
    )  # fmt: skip


def material(root: Path) -> Material:
    """Models, texts, and the local run: it scores on this machine's Ray and trains in this process."""
    runs.models(root)
    corpus = runs.corpus(root / "corpus.parquet", ROWS)

    @contextmanager
    def private() -> Iterator[Cluster]:
        yield replace(_cluster(may_grow=False), resources={"CPU": 2.0}, nodes=())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "connected", private)
        workflow.integrate(_config(root, corpus, root / "alone", pinned=False))
    manifests = (root / "alone" / "evidence").glob("*/manifest.json")
    evidence = {json.loads(path.read_text())["teacher"]: path.parent.name for path in manifests}
    return Material(root, corpus, root / "alone", evidence)


class Job:
    """A run as a process of its own, with notes of what each teacher begins and where."""

    def __init__(
        self, command: list[str], folder: Path, config: IntegrateConfig, address: str, pause: float = 0
    ) -> None:
        self.output, self.notes, self._log = Path(config.output), folder / "notes", folder / "log"
        (folder / "config.yaml").write_text(to_yaml(config))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *command,
                    str(self.notes),
                    str(pause),
                    "integrate",
                    str(folder / "config.yaml"),
                ],
                env={**os.environ, "RAY_ADDRESS": address},
                stdout=log,
                stderr=log,
            )

    @property
    def begun(self) -> list[Begun]:
        """Shards that models have begun so far."""
        return begun(self.notes)

    def begun_by(self, teacher: str) -> list[Begun]:
        """The same of one teacher, node by node."""
        return [note for note in self.begun if note.teacher == teacher]

    def until(self, reached: Callable[[], bool], seconds: float = 300) -> None:
        """Look again and again."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(0.005)

    def finish(self, seconds: float = 400) -> None:
        try:
            assert self.process.wait(seconds) == 0, self._log.read_text()[-3000:]
        finally:
            self.process.kill()


def contents(output: Path, *folders: str) -> dict[str, bytes]:
    """Every file of the run's folders: path to bytes. Hidden ones are what killed processes left half written."""
    files = (path for folder in folders for path in (output / folder).rglob("[!.]*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in files}
