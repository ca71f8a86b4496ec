"""The whole job on object storage: an S3 server that fails now and then, credentials that must not leak.

One run on the local disk, the same from and to S3, and that once more; compared to the byte.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyarrow import fs

from muki_ray import workflow
from muki_ray.cli import main
from muki_ray.filesystem import copy_tree
from muki_ray.runtime import Cluster, _cluster, ray
from tests import runs, tiny
from tests.flaky import Fault, FlakyS3, flaky_s3

pytestmark = pytest.mark.heavy

SECRET = "q7URIs3cr3tw0rd"
CREDENTIALS = [SECRET, "AKIDURI", os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]]
EVERY = 13  # requests, of which the last goes wrong


@dataclass(frozen=True)
class Job:
    """A local run, copies of the run in S3 after it and after its repetition, and what both said."""

    root: Path
    local: Path
    first: Path
    second: Path
    said: tuple[str, str]
    faults: set[Fault]


@contextmanager
def private() -> Iterator[Cluster]:
    """The tests' cluster as if this process had started it: the student is trained in the driver."""
    yield replace(_cluster(may_grow=False), resources={"CPU": 2.0})


def settings(models: dict[str, str], inputs: str, output: str, **more: Any) -> dict[str, Any]:
    """A configuration that computes the same wherever the inputs and the output are."""
    return {
        "teachers": [
            {"name": name, "model": models[name], "dtype": "float32", "resources": {"threads": 1}}
            for name in ("one", "two")
        ],
        "corpus": {
            "path": f"{inputs}/corpus.parquet",
            "shard_rows": 16,
            "test": {"path": f"{inputs}/test.csv", "text": "text", "label": "label"},
        },
        "student": {"model": models["base"]},
        "method": {"samples": 4},
        "training": {"epochs": 2, "batch_size": 8, "num_cpus": 1, "precision": "float32"},
        "output": output,
        **more,
    }


def integrate(root: Path, config: dict[str, Any]) -> str:
    """Run the command; what it said on both streams."""
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert main(["integrate", str(root / "config.yaml")]) == 0, said.getvalue()
    return said.getvalue()


def now_and_then(server: FlakyS3) -> None:
    """From now on requests go wrong in turn, in three ways."""
    turn = 0

    def fault(method: str, path: str) -> Fault:
        nonlocal turn
        turn += 1
        return (503, 429, "reset")[turn // EVERY % 3] if turn % EVERY == 0 else None

    server.fault = fault


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[Job]:
    root = tmp_path_factory.mktemp("job")
    inputs = runs.models(root / "in")
    runs.corpus(inputs / "corpus.parquet", 40)
    rows = [f"{text},sport" for text in tiny.texts(10, seed=3)]
    (inputs / "test.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    names = ("one", "two", "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "connected", private)
        here = {name: str(inputs / name) for name in names}
        integrate(root, settings(here, str(inputs), str(root / "local"), tracking={"enabled": False}))

    with pytest.MonkeyPatch.context() as patch, flaky_s3() as server:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{server.address}")  # for the driver alone
        client = fs.S3FileSystem(
            endpoint_override=server.address, scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        client.create_dir("whole-job")
        copy_tree(str(inputs), "s3://whole-job/in")
        options = f"?scheme=http&endpoint_override={server.address}&region=us-east-1"
        uri = f"s3://AKIDURI:{SECRET}@whole-job"
        there = {name: f"{uri}/in/{name}{options}" for name in names}
        there["two"] = f"s3://whole-job/in/two{options}"  # its actors have their environment's credentials
        config = settings(
            there,
            "s3://whole-job/in",
            f"{uri}/run{options}",
            tracking={"uri": f"sqlite:///{root}/mlflow.db", "log_model": True},
        )
        now_and_then(server)
        first = integrate(root, config)
        copy_tree("s3://whole-job/run", str(root / "first"))
        second = integrate(root, config)
        copy_tree("s3://whole-job/run", str(root / "second"))
        faults = {fault for _, _, fault in server.requests}
        yield Job(root, root / "local", root / "first", root / "second", (first, second), faults)


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_it_is_the_local_run_to_the_byte(job: Job) -> None:
    """Trained in the driver there, by Ray Train here: the same weights, for it is one loop in one thread."""
    assert job.faults == {503, 429, "reset", None}
    for folder in ("evidence", "supervision"):
        assert len(files(job.local / folder)) > 4
        assert files(job.first / folder) == files(job.local / folder)
    ours, theirs = files(job.first / "student"), files(job.local / "student")
    assert ours.keys() == theirs.keys() >= {"model.safetensors", "config.json", "README.md", "muki_ray.json"}
    assert [name for name in ours if ours[name] != theirs[name]] == ["muki_ray.yaml"], "it names the places"


def test_the_corpus_is_the_local_one_but_for_its_source(job: Job) -> None:
    def corpora(run: Path) -> list[dict[str, Any]]:
        found = [files(folder) for folder in (run / "corpus").iterdir()]
        return sorted(
            ({**parts, "manifest.json": json.loads(parts["manifest.json"])} for parts in found),
            key=lambda parts: parts["manifest.json"]["rows_in"],
        )

    ours, theirs = corpora(job.first), corpora(job.local)
    assert [parts["manifest.json"].pop("source") for parts in ours] == [
        ["s3://whole-job/in/test.csv"],
        ["s3://whole-job/in/corpus.parquet"],
    ]
    for parts in theirs:
        del parts["manifest.json"]["source"]
    assert ours == theirs


def test_the_report_and_mlflow_are_complete(job: Job) -> None:
    metrics = json.loads((job.first / "report" / "metrics.json").read_text())
    assert metrics["rows"]["scored"] == {"one": 50, "two": 50}
    assert metrics == json.loads((job.local / "report" / "metrics.json").read_text())
    assert (job.first / "report" / "report.html").stat().st_size > 10_000
    assert len(list((job.root / "mlartifacts").rglob("model.safetensors"))) == 1
    assert yaml.safe_load((job.first / "config.yaml").read_text())["output"] == "s3://whole-job/run"


def test_a_second_run_scores_and_trains_nothing(job: Job) -> None:
    metrics = json.loads((job.second / "report" / "metrics.json").read_text())
    assert metrics["rows"]["scored"] == {"one": 0, "two": 0}
    assert "training: reused, s3://whole-job/run/student is up to date" in job.said[1]
    for folder in ("corpus", "evidence", "supervision", "checkpoints", "student"):
        assert files(job.second / folder) == files(job.first / folder)


def test_no_credentials_are_left_anywhere(job: Job) -> None:
    """In no file of the run, of MLflow or of Ray's session, and in nothing that was said."""
    assert SECRET in (job.root / "config.yaml").read_text(), "where they were typed they are found"
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    places = [job.first, job.second, job.root / "mlartifacts", session]
    looked_at = [job.root / "mlflow.db", *(p for place in places for p in place.rglob("*") if p.is_file())]
    assert len(looked_at) > 100
    for secret in CREDENTIALS:
        assert not [str(path) for path in looked_at if secret.encode() in path.read_bytes()]
        assert not [said for said in job.said if secret in said]
