"""Where MLflow keeps a run, and how to talk to it without noise or long waits.

Knows MLflow's addresses and its environment variables; records nothing.
"""

from __future__ import annotations

import logging
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from muki_ray import filesystem as locations
from muki_ray.config import TrackingConfig
from muki_ray.errors import ConfigError
from muki_ray.store import RunFolder
from muki_ray.tracking_values import clean

_DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
_NOISY = ("mlflow", "alembic", "sqlalchemy", "urllib3.connectionpool")


def store_uri(config: TrackingConfig, run: RunFolder) -> tuple[str, str | None]:
    """Tracking URI, and where a new experiment keeps its files (None: the server decides)."""
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        if locations.scheme(run.location) not in ("", "file"):
            raise ConfigError(
                f"output is {clean(run.location)!r}, where MLflow cannot keep its SQLite file; "
                "set tracking.uri to a server, or set tracking.enabled=false"
            )
        return _sqlite(Path(locations.open_location(run.location)[1], "mlflow.db"))
    kind = locations.scheme(given).split("+")[0]
    if kind == "sqlite":
        database, _, query = given.partition("?")
        path = unquote(database.partition(":///")[2])
        if not path or path == ":memory:":
            raise ConfigError(f"tracking.uri {given!r} names no file; give sqlite:///<path of the file>")
        return _sqlite(Path(path).absolute(), query)
    if kind in _DATABASES:
        # the default of MLflow, the working directory, is thrown away after a job
        return given, locations.join(locations.absolute(run.location), "mlartifacts")
    return given, None


def _sqlite(database: Path, query: str = "") -> tuple[str, str]:
    """URI of a SQLite file, and the place for files beside it: MLflow's default is the working directory."""
    quoted = str(database).replace("%", "%25").replace("?", "%3F")  # SQLAlchemy would read them as escapes
    return f"sqlite:///{quoted}" + (f"?{query}" if query else ""), (database.parent / "mlartifacts").as_uri()


def probe(uri: str) -> None:
    """Connect once: MLflow itself retries a database for minutes. Raises what SQLAlchemy raises."""
    if locations.scheme(uri).split("+")[0] not in _DATABASES:
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    try:
        if engine.dialect.name == "sqlite" and engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine.connect().close()
    finally:
        engine.dispose()


def ui_command(uri: str) -> str | None:
    kind = locations.scheme(uri).split("+")[0]
    if kind in ("http", "https"):
        return f"python -m webbrowser {shlex.quote(clean(uri))}"
    return f"mlflow ui --backend-store-uri {shlex.quote(clean(uri))}" if kind in _DATABASES else None


def mlflow_module() -> Any:
    """MLflow, imported late: it takes seconds, and a run without tracking does not need it."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # no network but what the configuration names
    import mlflow

    return mlflow


def client_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (mlflow_module().MlflowException, SQLAlchemyError, OSError)


@contextmanager
def calm(retries: int, timeout: int) -> Iterator[None]:
    """MLflow with little patience and no chatter. What the user has set in the environment stays."""
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    mlflow_module()  # it sets its own log levels when it is first imported
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name in ours:
            os.environ.pop(name, None)
