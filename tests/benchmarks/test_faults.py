"""How the faults benchmark judges: what a run left, and which promises its figures break."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import broken
from faults_job import SHARDS, Run, outcome

from tests import tiny

ROWS = SHARDS * Run.shard_rows
KEPT: dict[str, Any] = {
    "faults": {"injected": 12, "survived": 12, "kinds": dict.fromkeys("abcdef", 2)},
    "rows": {"lost": 0, "duplicated": 0, "scored_again": 64, "allowed_again": 2304},
    "evidence_equal": True,
    "killed_at_half": {"ratio": 1.02, "same_mlflow_run": True},
    "mlflow": {"same_mlflow_run": True, "mlflow_status": "FINISHED"},
}


def part(run: Run, name: str, rows: Sequence[int]) -> None:
    """A file of the run folder with these row ids."""
    path = Path(run.output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row_id": list(rows)}), path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that set one row aside and kept all others; a killed process left half a file."""
    found = Run("one", tmp_path, str(tmp_path / "run"))
    part(found, "evidence/t/part-00000.parquet", range(ROWS))
    part(found, "supervision/s/part-00000.parquet", range(1, ROWS))
    part(found, "supervision/s/quarantine-00000.parquet", [0])
    Path(found.output, "evidence/t/.part-00000.parquet.1.tmp").write_bytes(b"half")
    tiny.classifier(Path(found.output, "student"), ["a", "b"])
    Path(found.output, "student/muki_ray.json").write_text("{}")
    return found


def test_a_whole_run_is_whole(run: Run) -> None:
    reference = run.parts()
    assert len(reference) == 3
    whole = {"equal": True, "files": 3, "lost": 0, "duplicated": 0, "student": True}
    assert outcome(run, reference) == whole


def test_a_row_that_is_lost_and_one_that_is_there_twice(run: Run) -> None:
    reference = run.parts()
    part(run, "supervision/s/part-00000.parquet", [*range(1, ROWS - 1), 7])
    found = outcome(run, reference)
    assert (found["equal"], found["lost"], found["duplicated"]) == (False, 1, 1)


def test_evidence_that_differs_in_a_byte_is_not_equal(run: Run) -> None:
    reference = run.parts()
    with Path(run.output, "evidence/t/part-00000.parquet").open("ab") as file:
        file.write(b"x")
    assert not outcome(run, reference)["equal"]


@pytest.mark.parametrize("name", ["muki_ray.json", "model.safetensors", "config.json"])
def test_a_student_that_lacks_a_file_is_none(name: str, run: Run) -> None:
    Path(run.output, "student", name).unlink()
    assert not outcome(run, run.parts())["student"]


def test_figures_that_keep_every_promise() -> None:
    assert broken(KEPT) == []


@pytest.mark.parametrize(
    ("place", "value", "promise"),
    [
        ("faults.survived", 11, "every fault survived"),
        ("faults.kinds", {"a": 12}, "at least 12 faults of 6 kinds"),
        ("rows.lost", 1, "no row lost"),
        ("rows.duplicated", 1, "no row twice"),
        ("rows.scored_again", 2305, "at most a shard per fault and teacher again"),
        ("evidence_equal", False, "evidence as undisturbed"),
        ("killed_at_half.ratio", 1.06, "killed at half: at most 1.05 of all rows"),
        ("killed_at_half.same_mlflow_run", False, "one MLflow run"),
        ("mlflow.mlflow_status", "RUNNING", "the MLflow run finished"),
    ],
)
def test_each_broken_promise_is_named(place: str, value: Any, promise: str) -> None:
    found = copy.deepcopy(KEPT)
    *sections, last = place.split(".")
    inner = found
    for section in sections:
        inner = inner[section]
    inner[last] = value
    assert broken(found) == [promise]
