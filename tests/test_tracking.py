"""Tracking, on real MLflow with SQLite. One database serves the module: its first use takes seconds."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray import tracking_outbox
from muki_ray.config import TrackingConfig
from muki_ray.errors import ConfigError
from muki_ray.store import RunFolder
from muki_ray.tracking import STATE, MlflowTracker, Tracker, open_tracker
from muki_ray.tracking_store import store_uri, ui_command
from muki_ray.tracking_values import MOST_NAME, clean, finite, flatten, mlflow_name

SECRET = "s3cr3tw0rd"


@pytest.fixture(autouse=True)
def _no_tracking_uri(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


FIRST_RUN = """
import os, sys
from muki_ray.config import TrackingConfig
from muki_ray.store import RunFolder
from muki_ray.tracking import open_tracker
assert "mlflow" not in sys.modules, "imported before it is needed"
tracker = open_tracker(TrackingConfig(), RunFolder(sys.argv[1]))
tracker.params({"a": 1}); tracker.metrics({"a": 1}); tracker.text("a.txt", "a"); tracker.finish()
import mlflow
from mlflow.telemetry import get_telemetry_client
assert mlflow.active_run() is None and "MLFLOW_TRACKING_URI" not in os.environ
assert get_telemetry_client() is None, "no network but what the configuration names"
"""


@dataclass
class FirstRun:
    """A whole run in a process of its own, with the default store: its database serves the other tests."""

    output: Path
    cwd: Path
    result: subprocess.CompletedProcess[str]

    @property
    def uri(self) -> str:
        return store_uri(TrackingConfig(), RunFolder(str(self.output)))[0]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    output, cwd = tmp_path_factory.mktemp("100% of a store?"), tmp_path_factory.mktemp("elsewhere")
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", FIRST_RUN, str(output)]
    return FirstRun(
        output,
        cwd,
        subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False),
    )


@pytest.fixture
def config(first_run: FirstRun) -> TrackingConfig:
    return TrackingConfig(uri=first_run.uri)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def recorded(tracker: Tracker) -> Any:
    """The run as MLflow has it."""
    assert isinstance(tracker, MlflowTracker)
    return client(tracker).get_run(tracker.run_id)


def client(tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracker.uri)


def test_a_whole_run_says_nothing_and_leaves_no_trace_elsewhere(first_run: FirstRun) -> None:
    assert (first_run.result.returncode, first_run.result.stdout, first_run.result.stderr) == (0, "", "")
    assert list(first_run.cwd.iterdir()) == []
    assert {path.name for path in first_run.output.iterdir()} == {"mlflow.db", "mlartifacts", STATE}


# -- the run -----------------------------------------------------------------------------------------


def test_a_run_records_what_it_is_told(config: TrackingConfig, run: RunFolder, tmp_path: Path) -> None:
    tracker = open_tracker(config, run)
    tracker.params({"method": {"tau": 0.2, "text": ["first", "second"]}, "epochs": 3})
    tracker.metrics({"kl": 0.5, "per_label": {"sport": np.float32(0.25)}}, step=2)
    tracker.tags({"stage": "student"})
    tracker.text("config.yaml", "tau: 0.2\n")
    tracker.binary("report/confusion.png", b"\x89PNG")
    tracker.corpus("news", "00ff00ff00ff00ff", "/data/news.parquet")
    tracker.finish()
    found = recorded(tracker)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params == {
        "method.tau": "0.2", "method.text.0": "first", "method.text.1": "second", "epochs": "3",
    }  # fmt: skip
    assert found.data.metrics == {"kl": 0.5, "per_label.sport": 0.25}
    assert client(tracker).get_metric_history(tracker.run_id, "kl")[0].step == 2
    assert found.data.tags["stage"] == "student"
    assert found.data.tags["muki_ray.output"] == run.location
    stored = Path(client(tracker).download_artifacts(tracker.run_id, "", str(tmp_path)))
    assert (stored / "config.yaml").read_text() == "tau: 0.2\n"
    assert (stored / "report" / "confusion.png").read_bytes() == b"\x89PNG"
    (given_corpus,) = found.inputs.dataset_inputs
    assert (given_corpus.dataset.name, given_corpus.dataset.digest) == ("news", "00ff00ff00ff00ff")
    assert json.loads(given_corpus.dataset.source)["uri"] == "/data/news.parquet"
    assert [(tag.key, tag.value) for tag in given_corpus.tags] == [("mlflow.data.context", "integration")]


def test_the_same_folder_continues_the_same_run(config: TrackingConfig, run: RunFolder) -> None:
    first = open_tracker(config, run)
    first.params({"epochs": 3})
    first.finish("FAILED")
    assert recorded(first).info.status == "FAILED"
    second = open_tracker(config, run)
    assert second.run_id == first.run_id
    assert recorded(second).info.status == "RUNNING"
    second.finish()
    assert recorded(second).info.status == "FINISHED"
    assert run.root.read_json(STATE) == {"uri": config.uri, "run_id": first.run_id}


def test_another_folder_is_another_run_of_the_same_experiment(config: TrackingConfig, tmp_path: Path) -> None:
    one, two = (open_tracker(config, RunFolder(str(tmp_path / name))) for name in ("one", "two"))
    assert one.run_id != two.run_id
    assert recorded(one).info.experiment_id == recorded(two).info.experiment_id


def test_a_deleted_or_unknown_run_is_not_continued(config: TrackingConfig, run: RunFolder) -> None:
    first = open_tracker(config, run)
    client(first).delete_run(first.run_id)
    second = open_tracker(config, run)
    assert second.run_id != first.run_id
    for run_id in ("0" * 32, "no id at all/..", 7):
        run.root.write_json(STATE, {"uri": config.uri, "run_id": run_id})
        assert open_tracker(config, run).run_id not in (run_id, first.run_id, second.run_id)


def test_a_changed_param_keeps_the_first_value_and_sets_a_tag(config: TrackingConfig, run: RunFolder) -> None:
    open_tracker(config, run).params({"method": {"tau": 0.2}, "epochs": 3})
    again = open_tracker(config, run)
    again.params({"method": {"tau": 0.5}, "epochs": 3, "patience": 1})
    found = recorded(again)
    assert found.data.params == {"method.tau": "0.2", "epochs": "3", "patience": "1"}
    assert {k: v for k, v in found.data.tags.items() if k.startswith("param_changed")} == {
        "param_changed.method.tau": "0.5"
    }
    back = open_tracker(config, run)
    back.params({"method": {"tau": 0.2}})
    assert recorded(back).data.tags["param_changed.method.tau"] == "0.2", "the tag names the value in use"


def test_numbers_that_are_not_finite_are_passed_over(config: TrackingConfig, run: RunFolder) -> None:
    tracker = open_tracker(config, run)
    tracker.metrics({"nan": math.nan, "inf": math.inf, "none": None, "text": "0.5", "kept": 1, "flag": True})
    assert recorded(tracker).data.metrics == {"kept": 1.0, "flag": 1.0}


def test_more_values_than_one_call_takes(config: TrackingConfig, run: RunFolder) -> None:
    tracker = open_tracker(config, run)
    tracker.metrics({f"m{i}": i for i in range(1001)})
    tracker.params({f"p{i}": i for i in range(101)})
    tracker.params({"long": "x" * 7000})
    found = recorded(tracker)
    assert found.data.metrics == {f"m{i}": float(i) for i in range(1001)}
    assert len(found.data.params) == 102
    assert found.data.params["long"] == "x" * 6000


def test_labels_as_metric_names(config: TrackingConfig, run: RunFolder) -> None:
    tracker = open_tracker(config, run)
    tracker.metrics({"f1": {"C++": 0.1, "C!!": 0.2, "a/../b": 0.3, "日本": 0.4, "": 0.5}})
    assert sorted(recorded(tracker).data.metrics.values()) == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_credentials_are_recorded_nowhere(config: TrackingConfig, run: RunFolder, tmp_path: Path) -> None:
    place = f"s3://key:{SECRET}@bucket/data?token={SECRET}"
    tracker = open_tracker(config, run)
    tracker.params({"corpus": {"path": [place]}})
    tracker.tags({"from": place})
    tracker.text("config.yaml", f"path: [{place}, https://me:pass@{SECRET}@host/x]\n")
    tracker.corpus("news", "0" * 16, [place, place])
    tracker.finish()
    found = recorded(tracker)
    assert SECRET not in str(found.to_dictionary())
    assert found.data.params["corpus.path.0"] == "s3://bucket/data"
    stored = Path(client(tracker).download_artifacts(tracker.run_id, "config.yaml", str(tmp_path)))
    assert SECRET not in stored.read_text()
    assert "https://host/x" in stored.read_text()


# -- the model ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one tiny layer that always answers `sport`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model") / "student"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "goal"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["business", "politics", "sport"]
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=16,
            id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
        )
    )  # fmt: skip
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# Mine\n")
    return folder


@pytest.fixture
def as_user(config: TrackingConfig) -> Iterator[None]:
    """What a user does before loading a model."""
    import mlflow

    mlflow.set_tracking_uri(config.uri)
    yield
    mlflow.set_tracking_uri(None)


def test_the_logged_model_loads_again_and_names_its_labels(
    config: TrackingConfig,
    run: RunFolder,
    classifier: Path,
    as_user: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    tracker = open_tracker(config, run)
    capfd.readouterr()
    assert not tracker.has_model("student-1")
    tracker.model(str(classifier), "student-1", input_example=["a goal"])
    assert capfd.readouterr() == ("", "")
    tracker.finish()
    again = open_tracker(config, run)
    for one in (tracker, again):
        assert one.has_model("student-1") and not one.has_model("student-2")
    again.finish()
    address = f"runs:/{tracker.run_id}/model"
    # softmax of (0, 0, 5): e^5 / (e^5 + 2)
    expected = {"label": "sport", "score": pytest.approx(math.exp(5) / (math.exp(5) + 2), abs=1e-4)}
    assert mlflow.transformers.load_model(address)("a goal") == [expected]
    loaded = mlflow.pyfunc.load_model(address)
    assert loaded.predict(["a goal", "a"]).to_dict("records") == [expected, expected]
    (output,) = recorded(tracker).outputs.model_outputs
    logged = client(tracker).get_logged_model(output.model_id)
    assert (logged.name, logged.status, logged.source_run_id) == ("model", "READY", tracker.run_id)
    files = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(tmp_path)))
    assert "# Mine" in (files / "model_card.md").read_text()
    assert not (files / "LICENSE.txt").exists()
    required = (files / "requirements.txt").read_text().split()
    assert [line.split("==")[0] for line in required] == ["transformers", "torch", "mlflow"]
    assert "+" not in "".join(required)


def test_a_folder_that_is_no_model_costs_a_warning(
    config: TrackingConfig, run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(config, run)
    tracker.model(str(tmp_path / "nothing"), "student-1")
    assert not tracker.has_model("student-1")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("muki_ray", logging.WARNING)
    assert "did not take the run's model" in record.getMessage()
    assert "\n" not in record.getMessage()


# -- where the store is ------------------------------------------------------------------------------


def test_disabled_records_nothing(run: RunFolder, tmp_path: Path, classifier: Path) -> None:
    tracker = open_tracker(TrackingConfig(enabled=False, uri="http://127.0.0.1:9"), run)
    tracker.params({"a": 1})
    tracker.metrics({"a": 1.0}, step=1)
    tracker.tags({"a": "b"})
    tracker.text("a.txt", "a")
    tracker.binary("a.png", b"a")
    tracker.corpus("news", "0" * 16, "/x")
    tracker.model(str(classifier), "student-1", ["a"])
    assert tracker.has_model("student-1"), "there is nothing to do"
    tracker.finish("FAILED")
    assert (tracker.run_id, tracker.uri, tracker.ui_command) == (None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_twin_has_every_method() -> None:
    twin, real = ({name for name in vars(kind) if name[0] != "_"} for kind in (Tracker, MlflowTracker))
    assert real == twin - {"run_id", "uri", "ui_command"}


def test_default_store_lies_in_the_run_folder(tmp_path: Path) -> None:
    uri, files = store_uri(TrackingConfig(), RunFolder(str(tmp_path / "a run")))
    assert uri == f"sqlite:///{tmp_path}/a run/mlflow.db"
    assert files == (tmp_path / "a run" / "mlartifacts").as_uri()
    assert ui_command(uri) == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/a run/mlflow.db'"


def test_configuration_goes_before_the_environment(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment:5000")
    assert store_uri(TrackingConfig(), run) == ("http://from.environment:5000", None)
    assert store_uri(TrackingConfig(uri="http://configured"), run) == ("http://configured", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert store_uri(TrackingConfig(), run)[0].startswith("sqlite:////")


def test_other_stores(run: RunFolder, tmp_path: Path) -> None:
    relative = store_uri(TrackingConfig(uri="sqlite:///sub/x.db"), run)
    assert relative == (f"sqlite:///{tmp_path}/sub/x.db", (tmp_path / "sub" / "mlartifacts").as_uri())
    server = f"postgresql://me:{SECRET}@db/mlflow"
    assert store_uri(TrackingConfig(uri=server), run) == (server, f"{run.location}/mlartifacts")
    assert ui_command(server) == "mlflow ui --backend-store-uri postgresql://db/mlflow"
    assert ui_command(f"https://me:{SECRET}@host/") == "python -m webbrowser https://host/"
    assert ui_command("databricks") is None


def test_object_store_output_needs_a_server() -> None:
    with pytest.raises(ConfigError, match=r"set tracking\.uri") as caught:
        open_tracker(TrackingConfig(), RunFolder(f"s3://key:{SECRET}@bucket/run"))
    assert SECRET not in str(caught.value)


def test_unreachable_server_is_one_line_after_one_retry(run: RunFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = taken.getsockname()[1]
        environment = dict(os.environ)
        with pytest.raises(ConfigError, match=f"cannot use MLflow at 'http://127.0.0.1:{port}'") as caught:
            open_tracker(TrackingConfig(uri=f"http://me:{SECRET}@127.0.0.1:{port}"), run)
    message = str(caught.value)
    assert "tracking.enabled=false" in message
    assert "\n" not in message
    assert SECRET not in message
    assert not run.root.has(STATE)
    assert dict(os.environ) == environment, "MLflow's settings are put back"


@pytest.mark.parametrize(
    "uri", ["./mlruns", "sqlite:////proc/none/mlflow.db", "sqlite://", "foo://bar", "sqlite:///"]
)
def test_unusable_store_is_one_line(uri: str, run: RunFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tracker(TrackingConfig(uri=uri), run)
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deleted_experiment_is_named(config: TrackingConfig, tmp_path: Path) -> None:
    gone = config.model_copy(update={"experiment": "gone"})
    tracker = open_tracker(gone, RunFolder(str(tmp_path / "one")))
    client(tracker).delete_experiment(recorded(tracker).info.experiment_id)
    with pytest.raises(ConfigError, match="experiment 'gone' was deleted"):
        open_tracker(gone, RunFolder(str(tmp_path / "two")))


# -- when the store fails in the middle --------------------------------------------------------------


def test_what_a_broken_database_missed_it_gets_when_it_is_whole_again(
    first_run: FirstRun,
    run: RunFolder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking_outbox, "REST_S", 0)
    copy = tmp_path / "mlflow.db"
    shutil.copy(first_run.output / "mlflow.db", copy)
    tracker = open_tracker(TrackingConfig(uri=f"sqlite:///{copy}"), run)
    tracker.metrics({"kl": 1.0})
    assert caplog.records == []
    whole = copy.read_bytes()
    copy.write_bytes(b"no database" * 10_000)
    for step in range(1, 4):
        tracker.metrics({"kl": 0.5}, step=step)
    tracker.params({"a": 1})
    tracker.finish()
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" (")[0] for message in messages] == [
        "MLflow does not answer",
        "MLflow has not got the run's end, metrics, params; run again to record what it lacks, but for a training's curves",
    ], "one line however often it fails, and one at the end"
    assert all("\n" not in message for message in messages)
    copy.write_bytes(whole)
    tracker.metrics({"kl": 0.25}, step=4)
    history = client(tracker).get_metric_history(tracker.run_id, "kl")
    assert [(point.step, point.value) for point in history] == [
        (0, 1),
        (1, 0.5),
        (2, 0.5),
        (3, 0.5),
        (4, 0.25),
    ]
    assert recorded(tracker).data.params == {"a": "1"}
    assert recorded(tracker).info.status == "FINISHED"


def test_the_run_goes_on_when_the_store_vanishes(first_run: FirstRun, run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(first_run.output / "mlflow.db", folder / "mlflow.db")
    tracker = open_tracker(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"), run)
    shutil.rmtree(folder)
    tracker.metrics({"kl": 1.0})
    tracker.text("a.txt", "a")
    tracker.finish()


# -- values ------------------------------------------------------------------------------------------

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


def leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(leaves(inner) for inner in value.values())
    return sum(leaves(inner) for inner in value) if isinstance(value, list) else 1


@given(st.dictionaries(st.text(max_size=300), plain_values, max_size=5))
def test_flattening_loses_no_value_and_gives_names_that_mlflow_takes(values: dict[str, Any]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    flat = flatten(values)
    assert len(flat) == leaves(values)
    for name in flat:
        assert 0 < len(name) <= MOST_NAME
        _validate_metric_name(name)
        assert mlflow_name(name) == name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (np.float64(0.5), 0.5),
        (np.array(2), 2.0),
        (np.array([1.0, 2.0]), None),
        (math.nan, None),
        (-math.inf, None),
        (10**400, None),
        ("1", None),
        (None, None),
    ],
)
def test_finite(value: Any, expected: float | None) -> None:
    assert finite(value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a?region=x", "s3://bucket/a"),
        ("[s3://k:s@b/x, gs://c]", "[s3://b/x, gs://c]"),
        ("https://me:p@ss@host/x", "https://host/x"),
        ("mail me@host or go to /a@b?c", "mail me@host or go to /a@b?c"),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected
