"""The whole job on a real Ray and a real MLflow: once from start to end, then again, then evaluated anew."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import pipeline

from muki_ray import workflow
from muki_ray.assess import Classifier, predict_here, predict_on_cluster
from muki_ray.cli import main
from muki_ray.config import load_config
from muki_ray.evaluation import RESERVED
from muki_ray.runtime import Cluster, _cluster
from muki_ray.store import part_name
from tests import runs, tiny

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A configuration file with a test set, something to compare with and MLflow; run once."""
    root = tmp_path_factory.mktemp("job")
    runs.models(root)
    tiny.classifier(root / "rival", ["business", "film", "politics", "sport", "tech"], seed=5)
    runs.corpus(root / "corpus.parquet", 60)
    runs.corpus(root / "test.parquet", 12, seed=3, label="sport")
    config = {
        "teachers": [
            {"name": "one", "model": str(root / "one")},
            {"name": "two", "model": str(root / "two")},
        ],
        "corpus": {
            "path": str(root / "corpus.parquet"),
            "shard_rows": 16,
            "test": {"path": str(root / "test.parquet"), "compare": {"rival": str(root / "rival")}},
        },
        "student": {"model": str(root / "base")},
        "method": {"samples": 4},
        "training": {"epochs": 2, "batch_size": 8, "num_cpus": 1},
        "output": str(root / "run"),
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["integrate", str(root / "config.yaml")]) == 0
    return root


def metrics(job: Path) -> dict:
    return json.loads((job / "run" / "report" / "metrics.json").read_text())


def test_the_product_is_a_plain_hugging_face_folder(job: Path) -> None:
    answer = pipeline("text-classification", model=str(job / "run" / "student"), top_k=None)("the goal")
    assert {entry["label"] for entry in answer[0] if isinstance(answer[0], list)} or {e["label"] for e in answer} == {
        "business", "film", "politics", "sport", "tech"}  # fmt: skip
    files = {p.name for p in (job / "run" / "student").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "muki_ray.yaml", "muki_ray.json"} <= files
    assert "training_state.pt" not in files
    card = (job / "run" / "student" / "README.md").read_text()
    assert "library_name: transformers" in card


def test_metrics_hold_what_is_promised(job: Path) -> None:
    found = metrics(job)
    assert set(found) - {"rival"} <= set(RESERVED), "no classifier to compare with may take another's key"
    for name in ("accuracy", "macro_f1", "ece"):
        assert 0 <= found["student"][name] <= 1
    assert set(found["teachers"]) == {"one", "two"}
    assert "accuracy" in found["ensemble"] and "accuracy" in found["rival"]
    assert found["selection"]["rows"] == 12
    rows = found["rows"]
    assert rows["in"] == rows["out"] + rows["quarantined"] == 60
    assert rows["scored"] == {"one": 72, "two": 72}  # the corpus and the test set
    assert sum(found["corpus"]["teacher_share"].values()) == pytest.approx(1)
    pictures = {p.stem for p in (job / "run" / "report").glob("*.png")}
    assert {"accuracy", "scores", "margins", "rows_won", "scores_by_owner", "confusion"} <= pictures
    assert (job / "run" / "report" / "report.html").stat().st_size > 10_000


def test_a_second_run_scores_and_trains_nothing_and_continues_its_mlflow_run(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics(job)
    weights = (job / "run" / "student" / "model.safetensors").stat().st_mtime_ns
    run_id = json.loads((job / "run" / "tracking.json").read_text())["run_id"]
    assert main(["integrate", str(job / "config.yaml")]) == 0
    captured = capsys.readouterr()
    assert "training: reused" in captured.err
    assert "student" in captured.out and "mlflow ui" in captured.out
    after = metrics(job)
    assert after["rows"]["scored"] == {"one": 0, "two": 0}
    assert after["student"] == before["student"]
    assert (job / "run" / "student" / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((job / "run" / "tracking.json").read_text())["run_id"] == run_id


def test_mlflow_has_the_run_and_a_model_that_answers(job: Path) -> None:
    state = json.loads((job / "run" / "tracking.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{job / 'run' / 'mlflow.db'}")
    run = client.get_run(state["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.smoothing"] == "0.1"
    assert run.data.metrics["student.accuracy"] == pytest.approx(metrics(job)["student"]["accuracy"])
    assert len(client.get_metric_history(state["run_id"], "training.held_out_kl")) == 2
    assert {"config.yaml", "report"} <= {a.path for a in client.list_artifacts(state["run_id"])}
    models = client.search_logged_models([run.info.experiment_id])
    assert len(models) == 1
    assert mlflow.pyfunc.load_model(models[0].artifact_location).predict(["the goal"]) is not None


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster looks like a machine of one's own, where the student trains in the driver."""

    @contextmanager
    def connected() -> Iterator[Cluster]:
        yield replace(_cluster(may_grow=False), resources={"CPU": 2.0})

    monkeypatch.setattr(workflow, "connected", connected)


def test_baselines_share_the_evidence_and_end_in_a_student(job: Path, tmp_path: Path, private: None) -> None:
    """Teachers that share a label; each kind of objective, one after the other in one folder."""
    config = yaml.safe_load((job / "config.yaml").read_text())
    config |= {
        "teachers": [{"name": name, "model": str(job / name)} for name in ("two", "three")],
        "tracking": {"enabled": False},
        "output": str(tmp_path / "run"),
    }
    config["training"]["epochs"] = 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    report = tmp_path / "run" / "report" / "metrics.json"
    for kind, scored, words in (("uhc", 72, "(UHC)"), ("dfa", 0, "(DFA)")):
        assert main(["integrate", str(tmp_path / "config.yaml"), f"method={kind}"]) == 0
        found = json.loads(report.read_text())
        assert found["rows"]["scored"] == {"two": scored, "three": scored}
        assert 0 <= found["student"]["accuracy"] <= 1
        assert found["selection"]["rows"] == 0, "both teachers know sport"
        student = tmp_path / "run" / "student"
        assert words in (student / "README.md").read_text()
        labels = json.loads((student / "config.json").read_text())["id2label"]
        assert list(labels.values()) == ["film", "politics", "sport", "weather"]
        answer = pipeline("text-classification", model=str(student))("the goal")
        assert answer[0]["label"] in labels.values()


def test_evaluate_again_on_another_test_set(job: Path) -> None:
    runs.corpus(job / "other.parquet", 7, seed=4, label="tech")
    assert main(["evaluate", str(job / "config.yaml"), f"corpus.test.path={job / 'other.parquet'}"]) == 0
    found = metrics(job)
    assert found["rows_tested"] == 7
    assert found["rows"]["scored"] == {"one": 7, "two": 7}


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.epochs=3", r"it would be trained otherwise \(training\.epochs is 3, was 2\)"),
        ("method.smoothing=0.3", r"its teachers would be integrated otherwise \(method\.smoothing is 0\.3, was 0\.1\)"),
        ("method.samples=5", r"teacher 'one' would first have to score 4 shards of the corpus \(method\.samples is 5, was 4\)"),
        ("corpus.limit=40", r"teacher 'one' would first have to score 3 shards of the corpus \(corpus\.limit is 40, was None\)"),
    ],
)  # fmt: skip
def test_evaluate_refuses_what_the_student_was_not_made_with(
    job: Path, override: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves the run as it is."""
    kept = [job / "run" / name for name in ("config.yaml", "student/README.md", "report/metrics.json")]
    before = [path.read_bytes() for path in kept]
    capsys.readouterr()
    assert main(["evaluate", str(job / "config.yaml"), override]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(
        rf"^error: the student at '.*' was not made with this configuration: {reason}; evaluate with", last
    )
    assert [path.read_bytes() for path in kept] == before
    state = json.loads((job / "run" / "tracking.json").read_text())
    assert (
        mlflow.MlflowClient(f"sqlite:///{job / 'run' / 'mlflow.db'}").get_run(state["run_id"]).info.status
        == "FINISHED"
    )


@pytest.mark.parametrize(
    "override", ["training.num_workers=2", "teachers.0.allow_pickle=true", "training.max_failures=0"]
)  # fmt: skip
def test_evaluate_minds_only_what_makes_the_student(job: Path, override: str) -> None:
    assert main(["evaluate", str(job / "config.yaml"), override]) == 0


def test_a_machine_of_ones_own_trains_the_same_student_in_the_driver(
    job: Path, tmp_path: Path, private: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["integrate", str(job / "config.yaml"), f"output={tmp_path / 'run'}"]) == 0
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert folder.name.endswith("-here")
    assert "epoch 2/2: train KL" in capsys.readouterr().err
    ours, other = (
        load_file(where / "student" / "model.safetensors") for where in (tmp_path / "run", job / "run")
    )
    for name, tensor in ours.items():
        assert torch.allclose(tensor, other[name], atol=1e-5, rtol=0), name
    state = json.loads((tmp_path / "run" / "tracking.json").read_text())
    client = mlflow.MlflowClient(tracking_uri=state["uri"])
    steps = client.get_metric_history(state["run_id"], "training.train_kl")
    assert len({point.step for point in steps}) == len(steps) > 2
    assert len(client.get_metric_history(state["run_id"], "training.held_out_kl")) == 2


def test_evaluating_in_this_process_gives_what_the_cluster_gives(tmp_path: Path, ray_session: None) -> None:
    labels = ["business", "film", "tech"]
    tiny.classifier(tmp_path / "one", labels)
    texts = tiny.texts(12, seed=3)
    classifiers = [Classifier("one", str(tmp_path / "one"))]
    before = torch.get_num_threads()
    here = predict_here(classifiers, texts, None, [*labels, "sport"], before + 1, 0)
    assert torch.get_num_threads() == before, "the caller's threads are the caller's"
    there = predict_on_cluster(classifiers, texts, None, [*labels, "sport"], 1, 0)
    assert here["one"].shape == (12, 4)
    np.testing.assert_allclose(here["one"], there["one"], atol=1e-2)  # bfloat16 where the hardware has it
    np.testing.assert_allclose(here["one"].sum(axis=1), 1, atol=1e-5)


def test_the_student_is_calibrated_in_its_weights_or_not_at_all(
    job: Path, tmp_path: Path, private: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The temperature is in the head, the folder says so, and a change of mind trains nothing."""
    config, student = str(job / "config.yaml"), tmp_path / "run" / "student"

    def weights() -> dict[
        str, torch.Tensor
    ]:  # copies: what was loaded lies in the file, which will be replaced
        return {name: one.clone() for name, one in load_file(student / "model.safetensors").items()}

    def integrate(*overrides: str) -> float | None:
        assert main(["integrate", config, f"output={tmp_path / 'run'}", *overrides]) == 0
        found = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())
        marker = json.loads((student / "muki_ray.json").read_text())
        assert set(found) - {"rival"} <= set(RESERVED)
        temperature = found.get("calibration", {}).get("temperature")
        assert marker.get("temperature") == temperature
        return temperature

    temperature = integrate("student.calibrate=true")
    assert temperature is not None and temperature != 1
    calibrated = weights()
    assert f"temperature {temperature:.2f}" in capsys.readouterr().err
    assert integrate("student.calibrate=true") == temperature
    assert "| `temperature` | `" in (student / "README.md").read_text()
    assert "training: reused" in capsys.readouterr().err

    assert integrate() is None
    assert "epoch" not in capsys.readouterr().err
    for name, tensor in weights().items():
        if name.startswith("classifier."):
            torch.testing.assert_close(tensor / temperature, calibrated[name])
        else:
            assert torch.equal(tensor, calibrated[name])


def test_damaged_evidence_is_one_line(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Met by a task that samples the corpus: what Ray raises of it shows a traceback."""
    for name in ("corpus", "evidence"):
        shutil.copytree(job / "run" / name, tmp_path / name)
    for part in (tmp_path / "evidence").rglob(part_name(0)):
        part.write_bytes(b"no Parquet")
    overrides = [f"output={tmp_path}", "method.smoothing=0.2", "tracking.enabled=false"]
    assert main(["integrate", str(job / "config.yaml"), *overrides]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/evidence/") and "is not readable Parquet" in last


def test_plan(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is done, and of one that is not."""
    done = workflow.plan(load_config(str(job / "config.yaml")))
    assert done.summary.splitlines()[-1] == "  nothing to score: all evidence is stored"
    assert done.plan.stored == {"one": 72, "two": 72}
    (kept,) = (job / "run" / "mlartifacts").rglob("plan.txt")
    assert kept.read_text().startswith("plan: 2 teachers, ")

    found = workflow.plan(load_config(str(job / "config.yaml"), [f"output={tmp_path}"]))
    assert found.plan.to_score == {"one": 72, "two": 72}
    assert all(pace and pace.rows_per_s > 0 and pace.load_s > 0 for pace in found.plan.paces.values())
    estimate = found.plan.estimate
    assert estimate is not None
    assert estimate.seconds > max(cost.actor_s for cost in estimate.teachers.values())
    assert {path.name for path in tmp_path.iterdir()} == {"corpus"}, "nothing is scored, nothing is tracked"

    capsys.readouterr()
    assert main(["plan", str(job / "config.yaml")]) == 0
    assert capsys.readouterr().out.strip() == done.summary
