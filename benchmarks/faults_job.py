"""The job that `faults.py` disturbs: its runs, what a run leaves, and an MLflow server to lose."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import yaml
from noted_job import Begun, begun
from pyarrow import fs

TEACHERS, SHARDS = 3, 48
_PAUSE_S = 0.15  # of every shard: small teachers would be done before a fault finds its moment
_PATIENCE_S = 300.0
_KEYS = {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class Run:
    """A run folder and the processes that work on it, one after the other.

    Attributes:
        root: where models and corpus are, and the run's own notes.
        output: its run folder.
        s3: address of the server that holds it; else it is local.
    """

    shard_rows: ClassVar[int] = 64

    name: str
    root: Path
    output: str
    pause: float = _PAUSE_S
    tracked: bool = False
    s3: str | None = None
    settings: list[str] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def bucket(address: str) -> str:
        """A fresh bucket on the S3 server."""
        os.environ.update(_KEYS)
        _s3(address, allow_bucket_creation=True).create_dir("faults")
        return "faults"

    @property
    def _own(self) -> Path:
        folder = self.root / "of" / self.name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def begun(self) -> list[Begun]:
        """Shards that teachers' models have begun, over all processes."""
        return begun(self._own / "notes")

    @property
    def running(self) -> bool:
        """Whether the process is at work."""
        return self._process is not None and self._process.poll() is None

    def start(self, address: str) -> None:
        """The command, once more. `address`: of a Ray cluster; `local`: the run starts its own."""
        config = {
            "teachers": [
                {
                    "name": f"t{m}",
                    "model": str(self.root / f"teacher{m}"),
                    "dtype": "float32",
                    "resources": {"num_cpus": 0.4, "threads": 1, "max_actors": 1},
                }
                for m in range(TEACHERS)
            ],
            "corpus": {"path": str(self.root / "corpus.parquet"), "shard_rows": self.shard_rows},
            "student": {"model": str(self.root / "teacher0")},
            "training": {"epochs": 4, "patience": None, "precision": "float32", "num_cpus": 0.5},
            "tracking": {"enabled": self.tracked, "log_model": False},
            "output": self.output,
        }
        path = self._own / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        there = {"AWS_ENDPOINT_URL": f"http://{self.s3}", **_KEYS} if self.s3 else {}
        command = [sys.executable, str(Path(__file__).with_name("noted_job.py")), str(self._own / "notes")]
        with (self._own / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self.pause), "integrate", str(path), *self.settings],
                env={
                    **os.environ,
                    **there,
                    "RAY_ADDRESS": address,
                    "RAY_AUTH_MODE": "disabled",
                    "PYTHONPATH": str(Path(__file__).parents[1]),
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._from = (self._own / "log").stat().st_size

    def said(self) -> str:
        """What the last process has printed."""
        with (self._own / "log").open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def until(self, share: float) -> None:
        """Wait until so much of all shards has been begun."""
        self._wait(lambda: len(self.begun) >= share * SHARDS * TEACHERS)

    def until_said(self, words: str) -> None:
        """Wait until the process has printed this."""
        self._wait(lambda: words in self.said())

    def _wait(self, reached: Any) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not reached():
            if not self.running or time.monotonic() > deadline:
                sys.exit(f"error: {self.name} ended too early or hangs:\n{self.said()[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End the driver without a word to it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        time.sleep(3)  # its actors end a moment later

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        assert self._process is not None
        try:
            code = self._process.wait(_PATIENCE_S)
        finally:
            self._process.kill()
        if code:
            sys.exit(f"error: {self.name} ended with code {code}:\n{self.said()[-3000:]}")

    def mlflow_run(self) -> str | None:
        """Id of its MLflow run."""
        filesystem, folder = self._opened()
        with filesystem.open_input_stream(f"{folder}/tracking.json") as stream:
            found: str | None = json.loads(stream.read())["run_id"]
        return found

    def _opened(self) -> tuple[fs.FileSystem, str]:
        if self.s3 is None:
            return fs.LocalFileSystem(), self.output
        return _s3(self.s3), self.output.removeprefix("s3://")

    def files(self, *folders: str) -> dict[str, bytes]:
        """Content of all files below these, by path in the run folder; not what killed processes left half written."""
        filesystem, root = self._opened()
        found = {}
        for folder in folders:
            for info in filesystem.get_file_info(
                fs.FileSelector(f"{root}/{folder}", recursive=True, allow_not_found=True)
            ):
                if info.type == fs.FileType.File and not info.base_name.startswith("."):
                    with filesystem.open_input_stream(info.path, compression=None) as stream:
                        found[info.path.removeprefix(f"{root}/")] = bytes(stream.read())
        return found

    def parts(self) -> dict[str, str]:
        """Digest of every file of evidence and supervision."""
        return {
            path: hashlib.sha256(data).hexdigest()
            for path, data in self.files("evidence", "supervision").items()
        }


def outcome(run: Run, reference: dict[str, str]) -> dict[str, Any]:
    """What a run left, against the undisturbed one's digests and the texts that it was given."""
    supervision = _row_ids(run.files("supervision"))
    return {
        "equal": run.parts() == reference,
        "files": len(reference),
        "lost": len(set(range(SHARDS * run.shard_rows)) - set(supervision)),
        "duplicated": len(supervision) - len(set(supervision)),
        "student": _loads(run.files("student")),
    }


def _loads(student: dict[str, bytes]) -> bool:
    """Whether it is declared whole, and Transformers makes a classifier of finite weights from it."""
    from transformers import AutoModelForSequenceClassification

    if "student/muki_ray.json" not in student:
        return False
    with tempfile.TemporaryDirectory() as folder:
        for path, data in student.items():
            (Path(folder) / Path(path).name).write_bytes(data)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError):
            return False
    return all(bool(weights.isfinite().all()) for weights in model.parameters())


def _row_ids(files: dict[str, bytes]) -> list[int]:
    """Of all rows in all Parquet files, those set aside included."""
    return [
        row
        for path, data in files.items()
        if path.endswith(".parquet")
        for row in pq.read_table(io.BytesIO(data), columns=["row_id"])["row_id"].to_pylist()
    ]


def _s3(address: str, **options: Any) -> fs.S3FileSystem:
    return fs.S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1", **options)


class MlflowServer:
    """MLflow's own server on a SQLite file, as a process group."""

    def __init__(self, folder: Path, port: int | None) -> None:
        self.port = port or _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        command = [
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        files = ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
        with (folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, *store, *files],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                sys.exit(f"error: MLflow does not start:\n{(folder / 'mlflow.log').read_text()[-2000:]}")
            time.sleep(0.3)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def status(self, run_id: str | None) -> str:
        """Of a run, as MLflow has it."""
        with urllib.request.urlopen(
            f"{self.uri}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=30
        ) as answer:
            return str(json.loads(answer.read())["run"]["info"]["status"])

    def kill(self) -> None:
        """End it without a word."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def mlflow_server(folder: Path, port: int | None = None) -> Iterator[MlflowServer]:
    """The server, for a while; with the same folder and port it is the same one again."""
    server = MlflowServer(folder, port)
    try:
        yield server
    finally:
        server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
