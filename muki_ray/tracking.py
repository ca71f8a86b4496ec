"""Experiment tracking: the driver owns one MLflow run per run folder, and nobody else logs.

Knows MLflow and the run folder; knows nothing of Ray, Torch or the paper. No global state: every call goes
through a client with an explicit tracking URI. A store that cannot be used at the start is an error that the
user can mend; one that fails later costs a warning, never the run: what it has missed waits until it answers again.
Credentials are cut from all that is logged.
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from muki_ray import filesystem as locations
from muki_ray.config import TrackingConfig
from muki_ray.errors import ConfigError
from muki_ray.store import RunFolder
from muki_ray.tracking_outbox import Outbox
from muki_ray.tracking_store import calm, client_errors, mlflow_module, probe, store_uri, ui_command
from muki_ray.tracking_values import MOST_VALUE, chunks, clean, finite, flatten, mlflow_name, short

STATE = "tracking.json"
Status = Literal["FINISHED", "FAILED", "KILLED"]

# tag with the version of the model that was logged last
_MODEL = "muki_ray.model"
_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000  # MLflow's own limits


class Tracker:
    """Where a run is recorded. This one records nothing: it is what `tracking.enabled: false` gives.

    Attributes:
        run_id: of the MLflow run.
        uri: of the MLflow store, without credentials.
        ui_command: shell command that shows the run; None where MLflow has none for this store.
    """

    run_id: str | None = None
    uri: str | None = None
    ui_command: str | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; nested mappings and lists become dotted names. The first value of a name stays,
        a different one later becomes the tag `param_changed.<name>`."""

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Record the finite numbers in `values`; nested ones get dotted names. All else is passed over."""

    def curve(self, points: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        """`metrics` of many (step, values) at once: a store takes longer to be asked than to write."""

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags; a tag may change."""

    def text(self, name: str, content: str) -> None:
        """Store a text file, such as `config.yaml` or `report/report.html`."""

    def binary(self, name: str, data: bytes) -> None:
        """Store any other file, such as `report/confusion.png`."""

    def corpus(self, name: str, fingerprint: str, source: str | Sequence[str]) -> None:
        """Record what the run read: its fingerprint is MLflow's digest, `source` its path, URI or several."""

    def model(self, folder: str, version: str, input_example: Sequence[str] | None = None) -> None:
        """Log a Hugging Face classifier (path or URI) as the MLflow model named `model`.

        Args:
            version: what `has_model` will know it by.
        """

    def has_model(self, version: str) -> bool:
        """Whether the run has that model already, by this process or an earlier one; True where nothing is recorded."""
        return True

    def finish(self, status: Status = "FINISHED") -> None:
        """End the run. A later process with the same run folder continues it."""


def open_tracker(config: TrackingConfig, run: RunFolder) -> Tracker:
    """Start the MLflow run of a run folder, or continue the one that is named in its `tracking.json`.

    Raises:
        ConfigError: no place for the store follows from the configuration, or it cannot be used.
    """
    if not config.enabled:
        return Tracker()
    uri, artifacts = store_uri(config, run)
    try:
        with calm(retries=1, timeout=10):
            probe(uri)
            tracker = MlflowTracker(config, run, uri, artifacts)
    except ImportError as error:
        raise ConfigError(f"MLflow at {clean(uri)!r} needs a package: {error}; install it") from error
    except client_errors() as error:
        raise ConfigError(
            f"cannot use MLflow at {clean(uri)!r} ({short(error)}); "
            "start the server, set tracking.uri, or set tracking.enabled=false"
        ) from error
    run.root.write_json(STATE, {"uri": tracker.uri, "run_id": tracker.run_id})
    return tracker


class MlflowTracker(Tracker):
    """Records to MLflow. Use `open_tracker`."""

    def __init__(self, config: TrackingConfig, run: RunFolder, uri: str, artifacts: str | None) -> None:
        self._client = mlflow_module().MlflowClient(tracking_uri=uri)
        opened = self._continued(run) or self._created(config, run, artifacts)
        self._experiment: str = opened.info.experiment_id
        self._known: dict[str, str] = dict(opened.data.params)
        self._tags: set[str] = set(opened.data.tags)
        self._model: str | None = opened.data.tags.get(_MODEL)
        self._run: str = opened.info.run_id
        self._outbox = Outbox(lambda: self._client.get_run(self._run))
        self.run_id, self.uri, self.ui_command = self._run, clean(uri), ui_command(uri)

    def _continued(self, run: RunFolder) -> Any:
        """The run of an earlier process, running again; None if there is none or it was deleted."""
        state = run.root.read_json(STATE) if run.root.has(STATE) else None
        run_id = state.get("run_id") if isinstance(state, dict) else None
        if not isinstance(run_id, str):
            return None
        try:
            found = self._client.get_run(run_id)
        except mlflow_module().MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        if found.info.lifecycle_stage == "deleted":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return found

    def _created(self, config: TrackingConfig, run: RunFolder, artifacts: str | None) -> Any:
        experiment = self._client.get_experiment_by_name(config.experiment)
        if experiment is None:
            experiment_id = self._client.create_experiment(config.experiment, artifact_location=artifacts)
        elif experiment.lifecycle_stage == "deleted":
            raise ConfigError(
                f"the MLflow experiment {config.experiment!r} was deleted; "
                "restore it or set tracking.experiment"
            )
        else:
            experiment_id = experiment.experiment_id
        output = clean(locations.absolute(run.location)).rstrip("/")
        name = config.run_name or output.rsplit("/", 1)[-1]
        tags = {"mlflow.source.name": "muki_ray", "muki_ray.output": output[:MOST_VALUE]}
        return self._client.create_run(experiment_id, run_name=name, tags=tags)

    def params(self, values: Mapping[str, Any]) -> None:
        entities = mlflow_module().entities
        flat = {name: clean(str(value))[:MOST_VALUE] for name, value in flatten(values).items()}
        new = {name: value for name, value in flat.items() if name not in self._known}
        changed = {}
        for name in flat.keys() - new.keys():
            tag = mlflow_name(f"param_changed.{name}")
            if flat[name] != self._known[name] or tag in self._tags:
                changed[tag] = flat[name]

        def send() -> None:
            for chunk in chunks(list(new.items()), _PARAMS_PER_CALL):
                self._client.log_batch(self._run, params=[entities.Param(*item) for item in chunk])
                self._known.update(chunk)

        self._outbox.send("params", send)
        if changed:
            self.tags(changed)

    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        self.curve([(step, values)])

    def curve(self, points: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        metric, now = mlflow_module().entities.Metric, int(time.time() * 1000)
        kept = [
            metric(name, number, now, step)
            for step, values in points
            for name, value in flatten(values).items()
            if (number := finite(value)) is not None
        ]

        def send() -> None:
            for chunk in chunks(kept, _METRICS_PER_CALL):
                self._client.log_batch(self._run, metrics=chunk)

        self._outbox.send("metrics", send)

    def tags(self, values: Mapping[str, Any]) -> None:
        tag = mlflow_module().entities.RunTag
        flat = {name: clean(str(value))[:MOST_VALUE] for name, value in flatten(values).items()}

        def send() -> None:
            for chunk in chunks(list(flat.items()), _PARAMS_PER_CALL):
                self._client.log_batch(self._run, tags=[tag(*item) for item in chunk])
            self._tags.update(flat)

        self._outbox.send("tags", send)

    def text(self, name: str, content: str) -> None:
        self._outbox.send("files", lambda: self._client.log_text(self._run, clean(content), name))

    def binary(self, name: str, data: bytes) -> None:
        folder, _, base = name.rpartition("/")

        def send() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / base
                path.write_bytes(data)
                self._client.log_artifact(self._run, str(path), folder or None)

        self._outbox.send("files", send)

    def corpus(self, name: str, fingerprint: str, source: str | Sequence[str]) -> None:
        entities = mlflow_module().entities
        places = [clean(place) for place in ([source] if isinstance(source, str) else source)]
        kind = (locations.scheme(places[0]) if places else "") or "local"
        described = json.dumps({"uri": places[0] if len(places) == 1 else places[:50], "places": len(places)})
        dataset = entities.Dataset(name=name, digest=fingerprint, source_type=kind, source=described)
        given = entities.DatasetInput(dataset, [entities.InputTag("mlflow.data.context", "integration")])
        self._outbox.send("corpus", lambda: self._client.log_inputs(self._run, [given]))

    def model(self, folder: str, version: str, input_example: Sequence[str] | None = None) -> None:
        def send() -> None:
            self._log_model(folder, input_example)
            self._client.set_tag(self._run, _MODEL, version)  # last: it says that the model is there
            self._model = version

        self._outbox.send("model", send)

    def has_model(self, version: str) -> bool:
        return self._model == version

    def _log_model(self, folder: str, input_example: Sequence[str] | None) -> None:
        """`mlflow.transformers.log_model` by its parts: the whole would need the global tracking URI."""
        from huggingface_hub import ModelCard
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model, ModelSignature
        from mlflow.transformers import save_model
        from mlflow.types import ColSpec, Schema
        from transformers import pipeline

        with _no_bars(), tempfile.TemporaryDirectory() as scratch:
            if locations.scheme(folder) not in ("", "file"):
                locations.copy_tree(folder, f"{scratch}/student")
                folder = f"{scratch}/student"
            source = Path(locations.open_location(folder)[1])
            readme = source / "README.md"
            card = readme.read_text(encoding="utf-8") if readme.is_file() else "---\ntags: []\n---\n"
            saved = Path(scratch) / "model"
            logged = self._client.create_logged_model(
                self._experiment, name="model", source_run_id=self._run, model_type="text-classification"
            )
            try:
                save_model(
                    # MLflow's form for a plain folder fails where Transformers names its pipelines by string
                    transformers_model=pipeline("text-classification", model=str(source), device="cpu"),
                    path=str(saved),
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        run_id=self._run,
                        model_uuid=logged.model_id,
                        model_id=logged.model_id,
                    ),
                    task="text-classification",
                    # all given, so that nothing is looked up on a hub or found out by a trial prediction
                    model_card=ModelCard(card),
                    pip_requirements=_requirements(),
                    signature=ModelSignature(
                        inputs=Schema([ColSpec("string")]),
                        outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
                    ),
                    input_example=list(input_example) if input_example else None,
                )
                # MLflow writes this to say that it found no licence at an address made from our path
                (saved / "LICENSE.txt").unlink(missing_ok=True)
                self._client.log_model_artifacts(logged.model_id, str(saved))
            except BaseException:
                self._client.finalize_logged_model(logged.model_id, "FAILED")
                raise
            self._client.finalize_logged_model(logged.model_id, "READY")
            self._client.log_outputs(self._run, [LoggedModelOutput(logged.model_id, step=0)])

    def finish(self, status: Status = "FINISHED") -> None:
        self._outbox.send("end", lambda: self._client.set_terminated(self._run, status=status))
        self._outbox.close()


@contextmanager
def _no_bars() -> Iterator[None]:
    """Transformers without progress bars, for a while."""
    from transformers.utils import logging as chatter

    shown = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            chatter.enable_progress_bar()


def _requirements() -> list[str]:
    """What loading the model needs; a local build suffix (`+cpu`) is no version that an index knows."""
    packages = ("transformers", "torch", "mlflow")
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in packages]
