"""The whole job on a real Ray and a real MLflow: once from start to end, then again, then evaluated anew."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import yaml
from transformers import pipeline

from muki_ray.cli import main
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
    assert run.data.params["method.tau"] == "0.2"
    assert run.data.metrics["student.accuracy"] == pytest.approx(metrics(job)["student"]["accuracy"])
    assert len(client.get_metric_history(state["run_id"], "training.held_out_kl")) == 2
    assert {"config.yaml", "report"} <= {a.path for a in client.list_artifacts(state["run_id"])}
    models = client.search_logged_models([run.info.experiment_id])
    assert len(models) == 1
    assert mlflow.pyfunc.load_model(models[0].artifact_location).predict(["the goal"]) is not None


def test_evaluate_again_on_another_test_set(job: Path) -> None:
    runs.corpus(job / "other.parquet", 7, seed=4, label="tech")
    assert main(["evaluate", str(job / "config.yaml"), f"corpus.test.path={job / 'other.parquet'}"]) == 0
    found = metrics(job)
    assert found["rows_tested"] == 7
    assert found["rows"]["scored"] == {"one": 7, "two": 7}
