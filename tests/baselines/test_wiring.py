"""The baselines in the product: their supervision, its name, their evidence, and what the card says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from muki_ray.config import TrainingConfig
from muki_ray.config_method import (
    BaselineMethod,
    CflMethod,
    DfaMethod,
    MukiMethod,
    UhcMethod,
    VanillaKdMethod,
)
from muki_ray.labels import TeacherLabels, join
from muki_ray.store import RunFolder
from muki_ray.student.card import model_card
from muki_ray.supervision import supervise
from muki_ray.tasks import IntegrationTask, scoring_task, supervision_folder
from muki_ray.teachers.evidence import EvidenceArrays
from muki_ray.uncertainty import TeacherEvidence, score_entropy
from muki_ray.workflow.prepare import inspect_all, read_corpora
from tests import runs
from tests.test_tasks import write_evidence

KINDS: list[BaselineMethod] = [VanillaKdMethod(), UhcMethod(), DfaMethod(), CflMethod()]
SPACE = join([TeacherLabels("one", ("b", "a")), TeacherLabels("two", ("c", "a"))])


def shard(rows: int) -> tuple[pa.Table, list[EvidenceArrays]]:
    rng = np.random.default_rng(0)
    corpus = pa.table({"row_id": np.arange(rows), "text": [f"t{i}" for i in range(rows)]})
    return corpus, [EvidenceArrays(rng.normal(size=(rows, 2)).astype(np.float32) * 3) for _ in range(2)]


@pytest.mark.parametrize("method", KINDS, ids=lambda m: m.kind)
def test_supervision_of_a_shard(method: BaselineMethod) -> None:
    corpus, evidence = shard(4)
    evidence[1].logits[2] = np.nan
    result = supervise(corpus, evidence, SPACE, method)
    assert result.quarantine is not None and result.quarantine["row_id"].to_pylist() == [2]
    table = result.table
    assert table["row_id"].to_pylist() == [0, 1, 3]
    assert table["weight"].to_pylist() == [1.0, 1.0, 1.0]
    assert result.weight_sum == 3
    targets = np.array(table["target"].to_pylist())
    assert targets.shape == ((3, 4) if method.kind == "uhc" else (3, 3))
    np.testing.assert_allclose(targets.sum(axis=1), 2 if method.kind == "uhc" else 1, atol=1e-6)
    # for the report: the plain entropy score
    expected = np.stack([score_entropy(TeacherEvidence(one.logits[[0, 1, 3]])) for one in evidence], axis=1)
    np.testing.assert_allclose(np.array(table["scores"].to_pylist()), expected, atol=1e-6)
    assert table["teacher"].to_pylist() == [("one", "two")[m] for m in expected.argmax(axis=1)]
    assert result.statistics.rows == 3
    np.testing.assert_allclose(result.statistics.score_sum_M, expected.sum(axis=0), atol=1e-6)


def test_a_shard_of_bad_rows_only() -> None:
    corpus, evidence = shard(2)
    evidence[0].logits[:] = np.inf
    result = supervise(corpus, evidence, SPACE, UhcMethod())
    assert len(result.table) == 0 and result.quarantine is not None and len(result.quarantine) == 2


def prepared(tmp_path: Path, method: Any) -> IntegrationTask:
    path = tmp_path / "corpus.parquet"
    if not path.exists():
        runs.corpus(path, 20)
        runs.models(tmp_path / "models")
    config = runs.config(tmp_path / "models", tmp_path / "run", path, names=("two", "three"), method=method)
    folder = RunFolder(config.output)
    specs, space, _ = inspect_all(config)
    corpora = read_corpora(config, folder, space)
    tasks = tuple(scoring_task(spec.resolved(False), config.method, corpora, folder) for spec in specs)
    where = supervision_folder(tasks, space, config.method, folder)
    return IntegrationTask(tasks, space, config.method, where)


def test_evidence_is_shared_and_supervision_is_not(tmp_path: Path) -> None:
    wanted: list[Any] = [
        "vanilla_kd",
        {"kind": "vanilla_kd", "temperature": 2},
        "uhc",
        "dfa",
        "cfl",
        {"samples": 0, "score": "entropy"},
    ]
    made = [prepared(tmp_path, method) for method in wanted]
    assert len({tuple(t.folders[0].location for t in one.tasks) for one in made}) == 1
    assert [t.samples for t in made[0].tasks] == [0, 0]
    assert len({one.folder.location for one in made}) == len(wanted)
    slower = prepared(tmp_path, {"kind": "dfa", "head_learning_rate": 1e-4})
    assert slower.folder == made[3].folder, "what concerns the student alone is not in the name"


def test_a_task_writes_the_blocks_side_by_side(tmp_path: Path) -> None:
    task = prepared(tmp_path, "uhc")
    for one in task.tasks:
        write_evidence(one, 0)
    summary = task(0)
    assert summary.weight_sum == summary.rows == 8
    table = task.folder.read_table("part-00000.parquet")
    # film, politics, sport and sport, weather: four labels, five columns
    assert len(task.space) == 4
    assert {len(target) for target in table["target"].to_pylist()} == {5}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (VanillaKdMethod(), "Vanilla knowledge distillation"),
        (UhcMethod(), "renormalised over these labels"),
        (DfaMethod(), "Direct feature amalgamation (DFA)"),
        (CflMethod(), "Common feature learning (CFL)"),
    ],
    ids=lambda m: getattr(m, "kind", None),
)
@pytest.mark.parametrize("teachers", [1, 2])
def test_the_card_says_what_was_done(method: BaselineMethod, words: str, teachers: int) -> None:
    def card(of: BaselineMethod | MukiMethod) -> str:
        return model_card(
            ["a", "b", "c"],
            [
                {"name": f"t{m}", "model": "/x", "revision": None, "labels": ["a", "b"]}
                for m in range(teachers)
            ],
            "acme/base",
            of.model_dump(mode="json"),
            TrainingConfig().model_dump(mode="json"),
            {"rows": 3, "fingerprint": "00"},
        )

    text = card(method)
    assert words in text
    assert f"| `kind` | `{method.kind}` |" in text
    assert "with dropout on" not in text and "*Score.*" not in text
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == ["muki-ray", "knowledge-integration"]
    assert words not in card(MukiMethod())
