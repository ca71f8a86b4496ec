"""One shard's supervision against values worked by hand; bad rows set aside; plain columns."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from muki_ray.config_method import MukiMethod, PaperMethod, VanillaKdMethod
from muki_ray.labels import LabelSpace, TeacherLabels, join
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder
from muki_ray.supervision import QUARANTINE_SCHEMA, ShardSupervision, expected, supervise
from muki_ray.teachers.evidence import EvidenceArrays, float_lists

SPACE = join([TeacherLabels("one", ("b", "a")), TeacherLabels("two", ("c", "a"))])
FLOATS = pa.list_(pa.float32())


def corpus(rows: int, pairs: bool = False) -> pa.Table:
    columns: dict[str, pa.Array] = {
        "row_id": pa.array([10 + i for i in range(rows)], pa.int64()),
        "text": pa.array([f"text {i}" for i in range(rows)], pa.large_string()),
    }
    if pairs:
        columns["text_pair"] = pa.array([f"pair {i}" for i in range(rows)], pa.string())
    return pa.table(columns)


def logits(probs: Sequence[Sequence[float]]) -> np.ndarray:
    """Logits whose softmax these probabilities are."""
    return np.log(np.array(probs)).astype(np.float32)


def evidence(probs: Sequence[Sequence[float]], mc: Sequence[Sequence[float]] | None = None) -> EvidenceArrays:
    return EvidenceArrays(logits(probs), None if mc is None else np.array(mc, dtype=np.float32))


def method(**settings: Any) -> MukiMethod:
    return MukiMethod.model_validate(
        {"score": "entropy", "samples": 0, "smoothing": 0.0, "cotraining": False} | settings
    )


def column(result: ShardSupervision, name: str) -> np.ndarray:
    return np.array(result.table[name].to_pylist())


def entropy(p: float) -> float:
    """Of two labels, in bits: what `log 2` normalises to."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


# teacher one knows b and a, teacher two c and a; both rows are sure for one teacher and even for the other
ONE = [[0.9, 0.1], [0.5, 0.5]]
TWO = [[0.5, 0.5], [0.2, 0.8]]
SCORES = [[1 - entropy(0.9), 0.0], [0.0, 1 - entropy(0.2)]]


def test_hard_by_hand() -> None:
    result = supervise(corpus(2), [evidence(ONE), evidence(TWO)], SPACE, method(integration="hard"))
    # union: a, b, c
    np.testing.assert_allclose(column(result, "target"), [[0.1, 0.9, 0.0], [0.8, 0.0, 0.2]], atol=1e-6)
    np.testing.assert_allclose(column(result, "scores"), SCORES, atol=1e-6)
    margins = [SCORES[0][0] + 1e-6, SCORES[1][1] + 1e-6]
    np.testing.assert_allclose(column(result, "weight"), margins, atol=1e-6)
    assert result.weight_sum == pytest.approx(sum(margins), abs=1e-6)
    assert result.table["teacher"].to_pylist() == ["one", "two"]
    assert result.table["row_id"].to_pylist() == [10, 11]
    assert result.table["text"].to_pylist() == ["text 0", "text 1"]
    assert result.quarantine is None


def test_soft_by_hand() -> None:
    tau = 0.2
    result = supervise(
        corpus(2), [evidence(ONE), evidence(TWO)], SPACE, method(integration="soft", tau=tau, margin=False)
    )
    first = 1 / (1 + math.exp(-SCORES[0][0] / tau))  # weight of teacher one on row 0
    second = 1 / (1 + math.exp(-SCORES[1][1] / tau))  # weight of teacher two on row 1
    expected = [
        [first * 0.1 + (1 - first) * 0.5, first * 0.9, (1 - first) * 0.5],
        [(1 - second) * 0.5 + second * 0.8, (1 - second) * 0.5, second * 0.2],
    ]
    np.testing.assert_allclose(column(result, "target"), expected, atol=1e-6)
    assert column(result, "weight").tolist() == [1.0, 1.0]
    assert result.weight_sum == 2.0


def test_beliefs_that_nobody_learned_are_refused() -> None:
    with pytest.raises(ValueError, match="learn"):
        supervise(corpus(2), [evidence(ONE), evidence(TWO)], SPACE, method(cotraining=True))


def test_smoothing_is_a_tenth_by_default() -> None:
    space: LabelSpace = join([TeacherLabels("one", ("a", "b")), TeacherLabels("two", ("c", "d"))])
    said = [evidence([[0.9, 0.1]]), evidence([[0.5, 0.5]])]
    default = MukiMethod(score="entropy", samples=0, integration="hard", cotraining=False)
    result = supervise(corpus(1), said, space, default)
    # the first knows: 0.9 + 0.1 / 2 of it, 0.1 / 2 of the other
    np.testing.assert_allclose(column(result, "target"), [[0.855, 0.095, 0.025, 0.025]], atol=1e-6)
    assert PaperMethod().smoothing == 0


def test_monte_carlo_scores_with_deterministic_targets() -> None:
    """The score is of the Monte-Carlo mean, the target of the deterministic pass."""
    result = supervise(
        corpus(1),
        [evidence([[0.9, 0.1]], mc=[[0.5, 0.5]]), evidence([[0.6, 0.4]], mc=[[0.9, 0.1]])],
        SPACE,
        method(score="mc_entropy", samples=4, integration="hard"),
    )
    assert result.table["teacher"].to_pylist() == ["two"]
    np.testing.assert_allclose(column(result, "scores"), [[0.0, 1 - entropy(0.9)]], atol=1e-6)
    np.testing.assert_allclose(column(result, "target"), [[0.4, 0.0, 0.6]], atol=1e-6)


def test_one_teacher_has_no_margin() -> None:
    alone = join([TeacherLabels("one", ("b", "a"))])
    result = supervise(corpus(2), [evidence(ONE)], alone, method())
    np.testing.assert_allclose(column(result, "target"), [[0.1, 0.9], [0.5, 0.5]], atol=1e-6)
    assert column(result, "weight").tolist() == [1.0, 1.0]
    assert column(result, "scores").shape == (2, 1)
    assert result.statistics.won_M.tolist() == [2]
    assert result.statistics.margin_sum == 2.0


# -- bad rows --------------------------------------------------------------------------------------------


def test_rows_without_a_finite_answer_are_set_aside() -> None:
    rows = 5
    one, two = (evidence([[0.9, 0.1]] * rows, mc=[[0.9, 0.1]] * rows) for _ in range(2))
    one.logits[1, 0] = np.nan
    one.logits[4, 1] = np.inf
    two.logits[1, 0] = -np.inf
    assert two.mc_probs is not None
    two.mc_probs[3, 1] = np.nan
    result = supervise(corpus(rows), [one, two], SPACE, method(score="mc_entropy", samples=2))
    assert result.quarantine is not None
    assert result.quarantine.schema == QUARANTINE_SCHEMA
    assert result.quarantine.to_pylist() == [
        {"row_id": 11, "source": "evidence", "reason": "teacher one gave no finite answer"},
        {"row_id": 13, "source": "evidence", "reason": "teacher two gave no finite answer"},
        {"row_id": 14, "source": "evidence", "reason": "teacher one gave no finite answer"},
    ]
    assert result.table["row_id"].to_pylist() == [10, 12]
    assert len(result.table) + len(result.quarantine) == rows
    assert result.statistics.rows == 2
    good = supervise(
        corpus(1), [evidence([[0.9, 0.1]], mc=[[0.9, 0.1]])] * 2, SPACE, method(score="mc_entropy", samples=2)
    )
    assert result.weight_sum == pytest.approx(2 * good.weight_sum)


def test_a_shard_of_bad_rows_only() -> None:
    bad = EvidenceArrays(np.full((3, 2), np.nan, np.float32))
    result = supervise(corpus(3), [bad, evidence([[0.9, 0.1]] * 3)], SPACE, method())
    assert result.quarantine is not None and len(result.quarantine) == 3
    assert len(result.table) == 0
    assert (
        result.table.schema
        == supervise(corpus(2), [evidence(ONE), evidence(TWO)], SPACE, method()).table.schema
    )
    assert (result.weight_sum, result.statistics.rows) == (0.0, 0)


# -- columns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
def test_plain_columns(tmp_path: Any, pairs: bool) -> None:
    result = supervise(corpus(2, pairs), [evidence(ONE), evidence(TWO)], SPACE, method())
    texts = ["text", "text_pair"] if pairs else ["text"]
    assert result.table.schema.names == ["row_id", *texts, "target", "weight", "teacher", "scores"]
    assert [result.table.schema.field(name).type for name in texts] == [pa.string()] * len(texts)
    assert result.table.schema.field("target").type == result.table.schema.field("scores").type == FLOATS
    assert result.table.schema.field("weight").type == pa.float32()
    folder = Folder(str(tmp_path))
    folder.write_table("part-00000.parquet", result.table)
    frame = pd.read_parquet(io.BytesIO(folder.read_bytes("part-00000.parquet")))
    assert list(frame["row_id"]) == [10, 11]
    np.testing.assert_allclose(np.stack(frame["target"].to_list()).sum(axis=1), [1.0, 1.0], atol=1e-6)


def test_statistics_of_shards_add_up() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([0.5, 0.5], size=(2, 40))
    whole = supervise(corpus(40), [evidence(probs[0]), evidence(probs[1])], SPACE, method())
    parts = [
        supervise(
            corpus(40).slice(start, 20), [evidence(p[start : start + 20]) for p in probs], SPACE, method()
        )
        for start in (0, 20)
    ]
    merged = CorpusStatistics.empty(2)
    for part in parts:
        merged = merged.merge(CorpusStatistics.from_json(part.statistics.to_json()))
    assert merged == whole.statistics
    assert sum(part.weight_sum for part in parts) == pytest.approx(whole.weight_sum)
    scores_NM = column(whole, "scores")
    np.testing.assert_allclose(merged.score_sum_M, scores_NM.sum(axis=0), atol=1e-4)
    assert merged.margin_sum == pytest.approx(np.abs(scores_NM[:, 0] - scores_NM[:, 1]).sum(), abs=1e-4)
    assert merged.won_M.tolist() == [int((scores_NM.argmax(axis=1) == m).sum()) for m in (0, 1)]


def test_the_margin_is_counted_even_where_it_does_not_weigh() -> None:
    arguments = (corpus(2), [evidence(ONE), evidence(TWO)], SPACE)
    assert (
        supervise(*arguments, method(margin=False)).statistics == supervise(*arguments, method()).statistics
    )


def test_teachers_of_different_sizes_keep_their_places() -> None:
    space: LabelSpace = join([TeacherLabels("one", ("z", "y", "x")), TeacherLabels("two", ("x", "w"))])
    result = supervise(
        corpus(1), [evidence([[0.7, 0.2, 0.1]]), evidence([[0.5, 0.5]])], space, method(integration="hard")
    )
    np.testing.assert_allclose(column(result, "target"), [[0.0, 0.1, 0.2, 0.7]], atol=1e-6)


def test_what_is_expected_of_rows_undoes_how_targets_were_mixed() -> None:
    space: LabelSpace = join([TeacherLabels("one", ("a", "b")), TeacherLabels("two", ("c", "d"))])
    said = [evidence([[0.9, 0.1]]), evidence([[0.5, 0.5]])]
    chosen = method(integration="hard", cotraining=False, smoothing=0.1)
    result = supervise(corpus(1), said, space, chosen)
    # no beliefs: the weights of integration, without the share that is everybody's
    np.testing.assert_allclose(expected(result.table, space, chosen), [[0.9, 0.1, 0, 0]], atol=1e-6)
    # beliefs: probabilities, as they are
    believed = chosen.model_copy(update={"cotraining": True})
    table = result.table.set_column(
        result.table.column_names.index("scores"), "scores", float_lists(np.array([[0.75, 0.25]]))
    )
    np.testing.assert_allclose(expected(table, space, believed), [[0.675, 0.075, 0.125, 0.125]], atol=1e-6)
    baseline = VanillaKdMethod()
    np.testing.assert_array_equal(expected(table, space, baseline), column(result, "target"))
