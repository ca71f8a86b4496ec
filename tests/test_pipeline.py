"""The graph on a real Ray: evidence once, reuse, resume, added teachers, bad rows, killed drivers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from muki_ray import stage as stage_module
from muki_ray.config_method import MukiMethod
from muki_ray.cotraining_views import views_of
from muki_ray.embedding import embed
from muki_ray.errors import StoreError, TeacherError
from muki_ray.integration import integrate
from muki_ray.learned import Rows, learn, sample
from muki_ray.pipeline import finish_evidence, run_graph, score, turns
from muki_ray.planning import PoolPlan
from muki_ray.runtime import listening
from muki_ray.stage import TeacherStage
from muki_ray.store import MANIFEST, Folder, RunFolder, part_name
from muki_ray.student.model import inspect_student
from muki_ray.tasks import IntegrationTask, ScoringTask, scoring_task
from muki_ray.teachers.evidence import to_table
from muki_ray.teachers.loading import load
from muki_ray.teachers.scoring import Scorer
from muki_ray.text_view import shown
from muki_ray.uncertainty import scores
from muki_ray.workflow.prepare import inspect_all, read_corpora, settled
from tests import runs

pytestmark = pytest.mark.heavy
ROWS = 44  # five full shards of 8 and one of 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the actors of these runs: equal thread counts give equal bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, Path]:
    """A corpus, and a run folder in which both teachers have scored it."""
    tmp = tmp_path_factory.mktemp("finished")
    path = runs.corpus(tmp / "corpus.parquet", ROWS)
    scored, *_ = runs.score_only(runs.config(root, tmp / "run", path))
    assert scored == {"one": ROWS, "two": ROWS}
    return path, tmp / "run"


def copied(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The finished run in a folder that the test may spoil."""
    shutil.copytree(finished[1], tmp_path / "run")
    return finished[0], tmp_path / "run"


def test_evidence_equals_the_engine_without_ray_to_the_byte(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = runs.config(root, finished[1], finished[0])
    scored, _, _, tasks = runs.score_only(wanted)
    assert scored == {"one": 0, "two": 0}
    for task in tasks:
        scorer = Scorer(
            load(task.spec, "cpu"), samples=4, dropout=wanted.method.dropout, seed_key=task.spec.fingerprint
        )
        corpus, folder = task.corpora[0], task.folders[0]
        here = type(folder)(str(tmp_path / task.name))
        for shard in range(len(corpus.rows_per_part)):
            table = corpus.read(shard)
            evidence = scorer.score(table["text"].to_pylist(), shard=shard)
            here.write_table(part_name(shard), to_table(table["row_id"].to_numpy(), evidence))
            assert here.read_bytes(part_name(shard)) == folder.read_bytes(part_name(shard))


@pytest.mark.parametrize("cotraining", [True, False])
def test_supervision_is_what_the_pure_functions_say(
    cotraining: bool, root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path, run = copied(finished, tmp_path)
    wanted = runs.config(root, run, path, method={"samples": 4, "cotraining": cotraining})
    _, folder, facts, tasks = runs.score_only(wanted)
    method = wanted.method
    assert facts["rows"] == ROWS == sum(facts["rows_per_part"])
    assert facts["quarantined"] == 0
    total = 0.0
    # all rows are few enough to learn from all of them
    tables = [tasks[0].corpora[0].read(shard) for shard in range(len(facts["rows_per_part"]))]
    said = [
        [t.read(0, shard, table["row_id"].to_numpy()).take(np.ones(len(table), dtype=bool)) for t in tasks]
        for shard, table in enumerate(tables)
    ]
    seen = [Rows(evidence, table) for evidence, table in zip(said, tables, strict=True)]
    base = inspect_student(wanted.student, tasks[0].spec.max_length)
    learned = learn(
        method, [sample(method, rows) for rows in seen], lambda texts: embed(base, texts, 1, False)
    )
    assert (learned.cotraining is not None) is cotraining
    for shard, rows in enumerate(facts["rows_per_part"]):
        table = folder.read_table(part_name(shard))
        corpus = tables[shard]
        assert len(corpus) == rows
        assert table["row_id"].to_pylist() == corpus["row_id"].to_pylist()
        assert table["text"].to_pylist() == corpus["text"].to_pylist()
        evidence = said[shard]
        scores_NM = scores("mutual_information", evidence)
        if learned.cotraining is not None:
            scores_NM = learned.cotraining(views_of(evidence, scores_NM, shown(corpus["text"].to_pylist())))
        index = [np.array([0, 4]), np.array([1, 2, 3])]  # business film politics sport tech
        expected = integrate(
            [e.logits for e in evidence], index, 5, scores_NM, how="soft", tau=method.tau, with_margin=method.margin, temperature=1.0,
            smoothing=method.smoothing,
        )  # fmt: skip
        np.testing.assert_allclose(np.array(table["target"].to_pylist()), expected.targets, atol=1e-6)
        np.testing.assert_allclose(table["weight"].to_numpy(), expected.weights, atol=1e-6)
        total += float(expected.weights.sum())
    assert facts["weight_mean"] == pytest.approx(total / ROWS)


def tasks_in(root: Path, run: Path, corpus: Path) -> list[ScoringTask]:
    """Both teachers' tasks in a run folder of their own; nothing is scored yet."""
    wanted = settled(runs.config(root, run, corpus))
    folder = RunFolder(wanted.output)
    specs, space, _ = inspect_all(wanted)
    corpora = read_corpora(wanted, folder, space)
    return [scoring_task(spec.resolved(False), wanted.method, corpora, folder) for spec in specs]


def pool(name: str) -> PoolPlan:
    return PoolPlan((name,), 0.5, 0.0, None, 1, 1, 1, 1)


class Silence:
    """A messenger that nobody hears; counts rows."""

    def __init__(self) -> None:
        self.rows = 0

    def send(self, kind: str, content: Any) -> None:
        self.rows += content[1]


def row(corpus: int, *shards: int, teacher: str = "one") -> dict[str, np.ndarray]:
    return {
        "teacher": np.array([teacher]),
        "corpus": np.array([corpus]),
        "shards": np.array([json.dumps(shards)]),
    }


def test_shards_of_one_actor_at_the_same_time(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two calls at once, as Ray makes them: the same bytes, every shard once, one thread at the model."""
    (there, _), (task, _) = tasks_in(root, finished[1], finished[0]), tasks_in(root, tmp_path, finished[0])
    silence = Silence()
    stage = TeacherStage([task], 1, silence)  # type: ignore[arg-type]
    assert stage.engine.submit(torch.get_num_threads).result() == 1
    with ThreadPoolExecutor(2) as callers:
        results = list(callers.map(lambda shard: stage(row(0, shard)), range(6)))
    assert [int(r["scored"][0]) for r in results] == [8, 8, 8, 8, 8, 4]
    assert silence.rows == ROWS
    for shard in range(6):
        name = part_name(shard)
        assert task.folders[0].read_bytes(name) == there.folders[0].read_bytes(name)
    again = stage(row(0, 3))
    assert (int(again["scored"][0]), again["error"][0]) == (0, "")
    assert silence.rows == ROWS


def test_an_actor_of_several_teachers_takes_them_in_turn(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    there, tasks = tasks_in(root, finished[1], finished[0]), tasks_in(root, tmp_path, finished[0])
    stage = TeacherStage(tasks, 1, Silence())  # type: ignore[arg-type]
    loaded = []
    for teacher, shards in (("two", (0, 1)), ("two", (2,)), ("one", (5, 0)), ("two", (3, 4, 5))):
        result = stage(row(0, *shards, teacher=teacher))
        assert result["shard"].tolist() == list(shards)
        assert result["scored"].tolist() == [4 if shard == 5 else 8 for shard in shards]
        assert set(result["teacher"]) == {teacher}
        assert set(result["error"]) == {""}
        assert stage.turn is not None
        loaded.append(stage.turn[1])
    assert loaded[0] is loaded[1]
    assert len({id(model) for model in loaded}) == 3, "whoever's turn it is, is loaded anew"
    for task, whole in zip(tasks, there, strict=True):
        for name in task.folders[0].names():
            assert task.folders[0].read_bytes(name) == whole.folders[0].read_bytes(name)
    assert [len(task.missing()) for task in tasks] == [4, 0]


def test_one_model_is_in_memory_at_any_time(
    root: Path, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the first ones, when what was imported is set aside for good."""
    monkeypatch.setattr(stage_module, "_collected", 0)
    stage = TeacherStage(tasks_in(root, tmp_path, finished[0]), 1, Silence())  # type: ignore[arg-type]
    models = []
    for shard, teacher in enumerate(("one", "two", "one", "two")):
        stage(row(0, shard, teacher=teacher))
        assert stage.turn is not None
        models.append(weakref.ref(stage.turn[1].result().engine.model))
        assert [model() is not None for model in models] == [False] * shard + [True]


def test_teachers_in_turns_say_the_same(root: Path, finished: tuple[Path, Path], tmp_path: Path) -> None:
    """One pool of two actors for both, as where there is no room for two pools."""
    there, tasks = tasks_in(root, finished[1], finished[0]), tasks_in(root, tmp_path, finished[0])
    crew = PoolPlan(("one", "two"), 0.5, 0.0, None, 1, 2, 1, 2)
    with listening(lambda kind, content: None) as messenger:
        assert score(tasks, [[crew]], messenger) == {"one": ROWS, "two": ROWS}
    finish_evidence(tasks)
    for task, whole in zip(tasks, there, strict=True):
        for name in whole.folders[0].names():
            assert task.folders[0].read_bytes(name) == whole.folders[0].read_bytes(name)


def test_turns() -> None:
    def shards(rows: list[dict[str, Any]]) -> list[tuple[str, int, list[int]]]:
        return [(row["teacher"], row["corpus"], json.loads(row["shards"])) for row in rows]

    gaps = [(0, shard) for shard in range(5)]
    assert shards(turns({"a": gaps}, 4)) == [("a", 0, [shard]) for shard in range(5)]
    assert turns({"a": []}, 1) == []
    # 24 shards, two actors, eight rows each: one shard a row would do; 48 shards: three
    small = turns({name: [*gaps, (1, 0)] for name in "abcd"}, 2)
    assert shards(small)[:2] == [("a", 0, [0]), ("a", 0, [1])]
    many = shards(turns({f"t{i}": [*gaps, (1, 7)] for i in range(16)}, 4))
    assert many[:3] == [("t0", 0, [0, 1, 2]), ("t0", 0, [3, 4]), ("t0", 1, [7])]
    assert len(many) == 16 * 3
    long = turns({name: [(0, shard) for shard in range(10_000)] for name in "ab"}, 1)
    assert max(len(found) for _, _, found in shards(long)) == 64


@dataclass(frozen=True)
class Patient(Folder):
    """Evidence of a teacher that starts only when another one has come to its end."""

    other: Folder | None = None
    parts: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "other": self.other, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def has(self, name: str) -> bool:
        deadline = time.monotonic() + 60
        while name != MANIFEST and self.other is not None and len(self.other.names()) < self.parts:
            assert time.monotonic() < deadline, "the other teacher waits for this one"
            time.sleep(0.05)
        return super().has(name)


@pytest.mark.parametrize("first", [0, 1])
def test_no_teacher_waits_for_another(
    root: Path, finished: tuple[Path, Path], tmp_path: Path, first: int
) -> None:
    tasks = tasks_in(root, tmp_path / "run", finished[0])
    slow, quick = tasks[first], tasks[1 - first]
    tasks[first] = replace(slow, folders=(Patient(slow.folders[0].location, quick.folders[0], 6),))
    with listening(lambda kind, content: None) as messenger:
        assert score(tasks, [[pool(task.name) for task in tasks]], messenger) == {"one": ROWS, "two": ROWS}
    finish_evidence(tasks)


def test_a_shard_is_integrated_when_its_last_teacher_has_scored_it(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """Some evidence was there: of both teachers, of one, of none. Every shard is integrated, once."""
    path, run = copied(finished, tmp_path)
    wanted = runs.config(root, run, path)
    *_, tasks = runs.score_only(wanted)
    for task, lost in zip(tasks, ([1, 2], [2, 5]), strict=True):
        task.folders[0].remove([MANIFEST, *(part_name(shard) for shard in lost)])
    # beliefs would have to be learned before
    method = runs.config(root, run, path, method={"samples": 4, "cotraining": False}).method
    integration = IntegrationTask(
        tuple(tasks), inspect_all(wanted)[1], method, Folder(str(tmp_path / "supervision"))
    )
    with listening(lambda kind, content: None) as messenger:
        scored, done = run_graph(tasks, [pool(task.name) for task in tasks], integration, messenger)
    assert scored == {"one": 16, "two": 12}
    assert done is not None
    assert {shard: rows for shard, (rows, _, _) in done.shards.items()} == dict(enumerate([8, 8, 8, 8, 8, 4]))
    assert done.statistics.rows == ROWS


def test_another_tau_or_score_scores_nothing(root: Path, finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = copied(finished, tmp_path)
    before = runs.score_only(runs.config(root, run, path))[1]
    for method in (
        {"samples": 4, "tau": 0.5},
        {"samples": 4, "integration": "hard"},
        {"samples": 4, "score": "entropy"},
        {"samples": 4, "score": "mc_energy"},
        {"samples": 4, "score": "max_logit", "standardise": "zscore", "cotraining": False},
        {"samples": 4, "standardise": "owner", "integration": "hard", "cotraining": False},
        {"samples": 4, "cotraining": False},
    ):
        scored, folder, facts, _ = runs.score_only(runs.config(root, run, path, method=method))
        assert scored == {"one": 0, "two": 0}
        assert folder.location != before.location
        assert facts["rows"] == ROWS
        plain = not method.get("cotraining", True) and "standardise" not in method
        assert (facts["learned"] is None) is plain


def test_more_samples_are_other_evidence(root: Path, finished: tuple[Path, Path]) -> None:
    path, run = finished
    tasks = runs.score_only(runs.config(root, run, path))[3]
    other = scoring_task(tasks[0].spec, MukiMethod(samples=5), tasks[0].corpora, RunFolder(str(run)))
    assert other.folders[0].location != tasks[0].folders[0].location
    assert len(other.missing()) == 6


def test_an_added_teacher_costs_one_teacher(root: Path, finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = copied(finished, tmp_path)
    scored, _, facts, _ = runs.score_only(runs.config(root, run, path, ("one", "two", "three")))
    assert scored == {"one": 0, "two": 0, "three": ROWS}
    assert facts["labels"] == ["business", "film", "politics", "sport", "tech", "weather"]
    scored, _, facts, _ = runs.score_only(runs.config(root, run, path, ("three", "one")))
    assert scored == {"three": 0, "one": 0}
    assert facts["labels"] == ["business", "sport", "tech", "weather"]


def test_a_lost_shard_alone_is_scored_again(root: Path, finished: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = copied(finished, tmp_path)
    task = runs.score_only(runs.config(root, run, path))[3][1]
    folder = task.folders[0]
    kept = folder.read_bytes(part_name(5))
    folder.remove([MANIFEST, part_name(5)])
    scored, *_ = runs.score_only(runs.config(root, run, path))
    assert scored == {"one": 0, "two": 4}
    assert folder.read_bytes(part_name(5)) == kept


def test_a_folder_that_disagrees_with_its_manifest_is_refused(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path, run = copied(finished, tmp_path)
    task = runs.score_only(runs.config(root, run, path))[3][0]
    task.folders[0].remove([part_name(2)])
    with pytest.raises(StoreError, match="disagrees with its manifest"):
        runs.score_only(runs.config(root, run, path))


def test_evidence_about_other_rows_is_refused(
    root: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    path, run = copied(finished, tmp_path)
    folder = runs.score_only(runs.config(root, run, path))[3][0].folders[0]
    folder.write_bytes(part_name(0), folder.read_bytes(part_name(1)))
    with pytest.raises(StoreError, match="other rows"):
        runs.score_only(runs.config(root, run, path, method={"samples": 4, "tau": 0.3}))


def spoiled(root: Path, target: Path, word: str | None) -> Path:
    """Teacher one with NaN for one word's embedding, or for its whole head."""
    shutil.copytree(root / "one", target)
    tensors = load_file(target / "model.safetensors")
    if word is None:
        tensors["classifier.weight"][:] = np.nan
    else:
        tensors["bert.embeddings.word_embeddings.weight"][
            runs.tiny.tokenizer().convert_tokens_to_ids(word)
        ] = np.nan
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_bad_rows_are_quarantined_and_counted(root: Path, tmp_path: Path, ray_session: None) -> None:
    texts = ["goal in the match", "bank profit rises", None, "  ", "the goal", "new film", "old party"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    models = [{"name": "one", "model": str(spoiled(root, tmp_path / "one", "goal")), "dtype": "float32"},
              {"name": "two", "model": str(root / "two"), "dtype": "float32"}]  # fmt: skip
    _, folder, facts, tasks = runs.score_only(
        runs.config(root, tmp_path / "run", tmp_path / "c.parquet", names=(), teachers=models)
    )
    corpus = tasks[0].corpora[0]
    assert (corpus.rows_in, corpus.quarantined) == (7, 2)
    assert (facts["rows"], facts["quarantined"]) == (3, 2)
    assert folder.read_table(part_name(0))["row_id"].to_pylist() == [1, 5, 6]
    bad = folder.read_table("quarantine-00000.parquet")
    assert bad["row_id"].to_pylist() == [0, 4]
    assert set(bad["reason"].to_pylist()) == {"teacher one gave no finite answer"}


def test_a_teacher_that_always_answers_nan_is_one_clear_error(
    root: Path, tmp_path: Path, ray_session: None
) -> None:
    path = runs.corpus(tmp_path / "c.parquet", 8)
    models = [{"name": "one", "model": str(spoiled(root, tmp_path / "one", None)), "dtype": "float32"}]
    wanted = runs.config(
        root,
        tmp_path / "run",
        path,
        names=(),
        teachers=models,
        method={"samples": 0, "score": "entropy"},
    )
    with pytest.raises(TeacherError, match="NaN") as caught:
        runs.score_only(wanted)
    assert "\n" not in str(caught.value)


_DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import tests.conftest
from tests import runs
runs.score_only(runs.config(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
"""


def test_a_killed_driver_goes_on_where_it_was(root: Path, tmp_path: Path, ray_session: None) -> None:
    rows = 800
    path = runs.corpus(tmp_path / "c.parquet", rows)
    repository = Path(__file__).parents[1]
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(root), str(tmp_path / "run"), str(path), str(repository)],
        env={**os.environ, "RAY_ADDRESS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def parts() -> int:
        return len(list((tmp_path / "run" / "evidence").glob("*/part-*.parquet")))

    deadline = time.monotonic() + 400
    while parts() < 40 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _settle(parts)
    before = parts()
    assert 0 < before < 2 * rows // 8, "the driver was to be killed in the middle"
    assert not list((tmp_path / "run" / "evidence").glob(f"*/{MANIFEST}"))
    scored, _, facts, _ = runs.score_only(runs.config(root, tmp_path / "run", path))
    assert sum(scored.values()) + 8 * before <= 2 * rows + 2 * 8  # one shard per teacher may be done twice
    assert facts["rows"] == rows
    # what the two runs wrote together is what one undisturbed run writes
    scored, _, _, tasks = runs.score_only(runs.config(root, tmp_path / "run", path))
    assert scored == {"one": 0, "two": 0}
    for task in tasks:
        scorer = Scorer(
            load(task.spec, "cpu"), samples=4, dropout=MukiMethod().dropout, seed_key=task.spec.fingerprint
        )
        for shard in (0, 50, 99):
            table = task.corpora[0].read(shard)
            evidence = scorer.score(table["text"].to_pylist(), shard=shard)
            stored = task.read(0, shard, table["row_id"].to_numpy())
            np.testing.assert_array_equal(stored.logits, evidence.logits)
            np.testing.assert_array_equal(stored.mc_probs, evidence.mc_probs)


def _settle(count: object) -> None:
    """Wait until the killed driver's actors have gone: the number of parts stops changing."""
    assert callable(count)
    last, since = -1, time.monotonic()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and time.monotonic() - since < 3:
        now = count()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
