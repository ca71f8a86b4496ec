"""What the shards of a run add up to, whatever their order; folders that are not done are not declared done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from muki_ray import tasks
from muki_ray.config import IntegrateConfig, parse_config
from muki_ray.errors import StoreError
from muki_ray.labels import join
from muki_ray.learned import Learned, learn
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder, RunFolder, part_name
from muki_ray.tasks import (
    Integrated,
    IntegrationTask,
    ScoringTask,
    finish_evidence,
    finish_supervision,
    scoring_task,
    supervision_folder,
)
from muki_ray.teachers.evidence import EvidenceArrays, to_table
from muki_ray.workflow.prepare import inspect_all, read_corpora
from tests import runs

ROWS = 20  # shards of 8, 8 and 4


def wanted(tmp_path: Path) -> IntegrateConfig:
    """Two teachers, no samples: evidence is logits alone."""
    path = runs.corpus(tmp_path / "corpus.parquet", ROWS)
    method = {"samples": 0, "score": "entropy", "cotraining": False}
    return runs.config(runs.models(tmp_path / "models"), tmp_path / "run", path, method=method)


def task_of(config: IntegrateConfig) -> IntegrationTask:
    """The integration of these teachers; no evidence yet."""
    folder = RunFolder(config.output)
    specs, space, _ = inspect_all(config)
    corpora = read_corpora(config, folder, space)
    tasks = tuple(scoring_task(spec.resolved(False), config.method, corpora, folder) for spec in specs)
    return IntegrationTask(
        tasks, space, config.method, supervision_folder(tasks, space, config.method, folder)
    )


def write_evidence(task: ScoringTask, shard: int, bad: int | None = None) -> None:
    """Logits drawn from the shard's number; those of row `bad` are not finite."""
    ids = task.corpora[0].read(shard)["row_id"].to_numpy()
    logits = np.random.default_rng(shard).normal(size=(len(ids), len(task.spec.labels.names)))
    if bad is not None:
        logits[bad] = np.nan
    evidence = EvidenceArrays(logits=logits.astype(np.float32))
    task.folders[0].write_table(part_name(shard), to_table(ids, evidence))


@pytest.fixture
def task(tmp_path: Path) -> IntegrationTask:
    made = task_of(wanted(tmp_path))
    for shard in range(made.shards):
        for number, one in enumerate(made.tasks):
            write_evidence(one, shard, bad=1 if (number, shard) == (0, 2) else None)
    return made


def integrated(task: IntegrationTask, order: list[int]) -> Integrated:
    done = Integrated(CorpusStatistics.empty(len(task.tasks)))
    for shard in order:
        done.add(shard, task(shard))
    return done


def test_the_order_of_the_shards_changes_nothing(task: IntegrationTask) -> None:
    first = finish_supervision(task, integrated(task, [0, 1, 2]))
    manifest = task.folder.read_bytes("manifest.json")
    assert finish_supervision(task, integrated(task, [2, 0, 1])) == first
    assert task.folder.read_bytes("manifest.json") == manifest
    assert (first["rows"], first["quarantined"], first["rows_per_part"]) == (ROWS - 1, 1, [8, 8, 3])
    weights = [
        w for shard in range(3) for w in task.folder.read_table(part_name(shard))["weight"].to_pylist()
    ]
    assert first["weight_mean"] == pytest.approx(np.mean(weights))


def test_a_shard_that_nobody_integrated_is_not_passed_over(task: IntegrationTask) -> None:
    with pytest.raises(StoreError, match=r"no summary for shard 1 \(1 of 3\)"):
        finish_supervision(task, integrated(task, [0, 2]))
    assert task.folder.manifest() is None


def test_a_shard_that_was_integrated_twice_counts_once(task: IntegrationTask) -> None:
    done = integrated(task, [0, 1, 1, 2])
    assert done.statistics.rows == ROWS - 1
    assert finish_supervision(task, done) == finish_supervision(task, integrated(task, [0, 1, 2]))


def test_missing_evidence(tmp_path: Path) -> None:
    made = task_of(wanted(tmp_path))
    one = made.tasks[0]
    assert one.missing() == [(0, 0), (0, 1), (0, 2)]
    write_evidence(one, 1)
    assert one.missing() == [(0, 0), (0, 2)]
    with pytest.raises(StoreError, match="cannot be finished"):
        finish_evidence(made.tasks)
    for shard in (0, 2):
        write_evidence(one, shard)
    finish_evidence([one])
    assert one.missing() == []


def test_teachers_and_method_name_the_supervision(tmp_path: Path) -> None:
    config = wanted(tmp_path)
    made = task_of(config)
    other = config.method.model_copy(update={"tau": 0.5})
    folder = RunFolder(config.output)
    assert supervision_folder(made.tasks, made.space, other, folder) != made.folder
    fewer = made.tasks[:1]
    assert supervision_folder(fewer, join([fewer[0].spec.labels]), config.method, folder) != made.folder
    assert supervision_folder(made.tasks, made.space, config.method, folder, base="abc") != made.folder


# -- the sample that a method learns from ---------------------------------------------------------------


def test_a_small_corpus_is_sampled_whole_but_for_rows_without_an_answer(task: IntegrationTask) -> None:
    assert task.sampled_shards() == [0, 1, 2]
    sample = np.concatenate([task.sample(shard).scores_SM for shard in range(3)])
    integrated(task, [0, 1, 2])
    supervised = np.concatenate([_scores(task, shard) for shard in range(3)])
    assert sample.shape == (ROWS - 1, 2)
    np.testing.assert_allclose(sample, supervised, atol=1e-6)


def test_of_a_large_corpus_some_rows_from_shards_all_over_it(
    task: IntegrationTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_SAMPLE_SHARDS", 2)
    assert task.sampled_shards() == [0, 2]
    monkeypatch.setattr(tasks, "SAMPLE_ROWS", 6)  # of 12 rows in those shards
    parts = [task.sample(shard) for shard in (0, 2)]
    assert 0 < sum(len(part.scores_SM) for part in parts) < 12
    again = [task.sample(shard) for shard in (2, 0)][::-1]
    assert all(
        np.array_equal(one.scores_SM, other.scores_SM) for one, other in zip(parts, again, strict=True)
    )


def _scores(task: IntegrationTask, shard: int) -> np.ndarray:
    return np.array(task.folder.read_table(part_name(shard))["scores"].to_pylist())


def test_standardised_scores_are_another_supervision_with_its_own_manifest(tmp_path: Path) -> None:
    plain = task_of(wanted(tmp_path))
    config = wanted(tmp_path)
    method = config.method.model_copy(update={"standardise": "zscore"})
    other = task_of(config.model_copy(update={"method": method}))
    assert other.folder.location != plain.folder.location
    assert [t.folders for t in other.tasks] == [t.folders for t in plain.tasks], "the evidence is the same"
    for shard in range(other.shards):
        for one in other.tasks:
            write_evidence(one, shard)
    fitted = replace(other, learned=learn(method, [other.sample(shard) for shard in range(3)]))
    facts = finish_supervision(fitted, integrated(fitted, [0, 1, 2]))
    assert Learned.read(other.folder, facts["learned"]) == fitted.learned
    scores = np.concatenate([_scores(fitted, shard) for shard in range(3)])
    np.testing.assert_allclose(scores.mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(scores.std(axis=0), 1.0, atol=1e-6)


def test_cotraining_is_kept_beside_the_supervision_and_gives_probabilities(tmp_path: Path) -> None:
    config = wanted(tmp_path)
    method = config.method.model_copy(update={"cotraining": True})
    task = task_of(config.model_copy(update={"method": method}))
    for shard in range(task.shards):
        for one in task.tasks:
            write_evidence(one, shard)
    parts = [task.sample(shard) for shard in range(3)]
    assert sum(len(part.views) for part in parts if part.views is not None) == ROWS
    fitted = replace(task, learned=learn(method, parts))
    facts = finish_supervision(fitted, integrated(fitted, [0, 1, 2]))
    again = Learned.read(task.folder, facts["learned"])
    assert again.cotraining is not None and fitted.learned is not None
    beliefs = np.concatenate([_scores(fitted, shard) for shard in range(3)])
    np.testing.assert_allclose(beliefs.sum(axis=1), 1.0, atol=1e-6)
    before = [task.folder.read_bytes(part_name(shard)) for shard in range(3)]
    integrated(replace(task, learned=again), [0, 1, 2])
    assert before == [task.folder.read_bytes(part_name(shard)) for shard in range(3)]


def test_learning_from_no_rows_is_an_error(task: IntegrationTask) -> None:
    empty = replace(task.sample(0), scores_SM=np.zeros((0, 2)))
    with pytest.raises(ValueError, match="no rows"):
        learn(task.method, [empty])


def test_rows_that_no_teacher_knows_count_nothing(task: IntegrationTask) -> None:
    method = task.method.model_copy(update={"abstain": 0.25})
    fitted = replace(task, method=method, learned=learn(method, [task.sample(shard) for shard in range(3)]))
    facts = finish_supervision(fitted, integrated(fitted, [0, 1, 2]))
    tables = [task.folder.read_table(part_name(shard)) for shard in range(3)]
    weight = np.concatenate([table["weight"].to_numpy() for table in tables])
    raw = np.concatenate([_scores(task, shard) for shard in range(3)])
    best = ((raw - raw.mean(axis=0)) / raw.std(axis=0)).max(axis=1)
    np.testing.assert_array_equal(weight == 0, best < np.quantile(best, 0.25))
    assert 0 < (weight == 0).sum() < 7
    assert Learned.read(task.folder, facts["learned"]) == fitted.learned
    assert supervision_folder(task.tasks, task.space, method, RunFolder("x")) != supervision_folder(
        task.tasks, task.space, task.method, RunFolder("x")
    )


# -- learning from the first shards ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rows", "expected"),
    [
        ({}, [8_000] * 4, 3),  # 20,000 rows for co-training
        ({}, [20_000, 1], 1),
        ({}, [10_000] * 2, None),  # that is all
        ({}, [5_000], None),
        ({"cotraining": False}, [8_000] * 20, 9),  # 65,536 rows for the mean weight
        ({"cotraining": False, "standardise": "zscore", "weights": "raw"}, [8_000] * 20, 9),
        ({"cotraining": False, "weights": "raw"}, [8_000] * 20, 0),  # nothing to learn
        ({"kind": "uhc"}, [8_000], 0),
    ],
)
def test_first_shards(method: dict[str, object], rows: list[int], expected: int | None) -> None:
    content = {"teachers": [{"name": "a", "model": "m"}], "corpus": {"path": "p"}, "student": {"model": "m"}}
    config = parse_config({**content, "output": "o", "method": method})
    assert tasks.first_shards(config.method, rows) == expected


def test_learning_from_the_first_shards_is_another_supervision(task: IntegrationTask) -> None:
    learning = replace(task, method=task.method.model_copy(update={"standardise": "zscore"}))
    run = RunFolder(str(Path(task.folder.location).parents[1]))

    def folder(of: IntegrationTask, first: int | None) -> Folder:
        return supervision_folder(of.tasks, of.space, of.method, run, first)

    assert folder(task, None) == folder(task, 2) == task.folder, "it learns nothing"
    assert len({folder(learning, first).location for first in (None, 1, 2)}) == 3
    learning = replace(learning, folder=folder(learning, 2), first=2)
    assert learning.sampled_shards() == [0, 1]
    parts = [learning.sample(shard) for shard in learning.sampled_shards()]
    assert [len(part.scores_SM) for part in parts] == [8, 8]
    learning = replace(learning, learned=learn(learning.method, parts))
    facts = finish_supervision(learning, integrated(learning, [0, 1, 2]))
    assert facts["learned_from"] == {"first_shards": 2}
    assert "learned_from" not in finish_supervision(task, integrated(task, [0, 1, 2]))
