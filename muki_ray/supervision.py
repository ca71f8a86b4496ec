"""Supervision as a table: what the student learns from, one shard at a time.

Joins a corpus shard with all teachers' evidence about it, sets bad rows aside, integrates the rest. Knows
arrays and Arrow tables; knows no Ray, no models.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from muki_ray.baselines.targets import baseline_supervision
from muki_ray.calibration import expected_labels
from muki_ray.config_method import AnyMethod, BaselineMethod
from muki_ray.integration import integrate, smoothed, teacher_weights
from muki_ray.labels import LabelSpace
from muki_ray.learned import Learned, Rows
from muki_ray.statistics import CorpusStatistics
from muki_ray.teachers.evidence import EvidenceArrays, float_lists

# part of every supervision fingerprint: raise it when the meaning of a column changes
SUPERVISION_FORMAT = 11
QUARANTINE_SCHEMA = pa.schema([("row_id", pa.int64()), ("source", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class ShardSupervision:
    """One shard: `table` for the student, `quarantine` (None when all rows are good), statistics, weight sum."""

    table: pa.Table
    quarantine: pa.Table | None
    statistics: CorpusStatistics
    weight_sum: float


def supervise(
    corpus: pa.Table,
    evidence: Sequence[EvidenceArrays],
    space: LabelSpace,
    method: AnyMethod,
    learned: Learned | None = None,
) -> ShardSupervision:
    """Integrate one shard.

    Args:
        corpus: row_id, text[, text_pair], `N` rows.
        evidence: of the `M` teachers, in the order of `space.teachers`, about the same rows.
        learned: from the corpus; None compares the scores as they are.

    Statistics count the scores; where those have no bounds, the teachers' weights.
    Rows on which any teacher answered NaN or infinity go to quarantine with the teacher's name.

    Raises:
        ValueError: the method is one of co-training, and nothing was learned.
    """
    finite = np.stack([one.finite() for one in evidence], axis=1)  # [N, M]
    good: NDArray[np.bool_] = np.asarray(finite.all(axis=1))
    quarantine = None
    if not good.all():
        bad = np.flatnonzero(~good)
        reasons = [f"teacher {space.teachers[int(finite[i].argmin())]} gave no finite answer" for i in bad]
        ids = corpus["row_id"].take(pa.array(bad))
        quarantine = pa.table(
            [ids, pa.array(["evidence"] * len(bad)), pa.array(reasons)], schema=QUARANTINE_SCHEMA
        )
    chosen = [one.take(good) for one in evidence]
    kept = corpus.filter(pa.array(good))
    learned, rows = learned or Learned(), Rows(chosen, kept)
    if method.cotraining and learned.cotraining is None:
        raise ValueError(
            "the method compares beliefs, but none were learned from the corpus; give what `learn` returns"
        )
    scores_NM = learned(method.score, rows)
    logits, shown_NM = [one.logits for one in chosen], scores_NM
    if isinstance(method, BaselineMethod):
        result = baseline_supervision(method, logits, space, scores_NM)
    else:
        result = integrate(
            logits, space.index, len(space), scores_NM,
            how=method.integration, tau=method.tau, with_margin=method.margin, temperature=method.temperature,
            smoothing=method.smoothing, bounded=method.bounded,
        )  # fmt: skip
        result.weights[~learned.known(method.score, rows)] = 0.0
        if not method.bounded:
            shown_NM = teacher_weights(scores_NM, "soft", method.tau)
    statistics = CorpusStatistics.empty(len(evidence))
    statistics.update(shown_NM, _margins(shown_NM))
    texts = {
        name: kept[name].cast(pa.string()) for name in kept.column_names if name in ("text", "text_pair")
    }
    table = pa.table(
        {
            "row_id": kept["row_id"],
            **texts,
            "target": float_lists(result.targets),
            "weight": pa.array(result.weights, pa.float32()),
            "teacher": pa.array([space.teachers[m] for m in result.teacher], pa.string()),
            "scores": float_lists(scores_NM),
        }
    )
    return ShardSupervision(table, quarantine, statistics, float(result.weights.sum()))


def expected(table: pa.Table, space: LabelSpace, method: AnyMethod) -> NDArray[np.float64]:
    """What the teachers expect of each row of a supervision table, where its targets serve learning; see `calibration`. `[N, C]`

    Beliefs are probabilities as they are; where there are none, integration's own weights are all that is known.
    """
    targets_NC, scores_NM = (
        table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1).astype(np.float64)
        for name in ("target", "scores")
    )
    if isinstance(method, BaselineMethod):
        return targets_NC
    plain_NM = teacher_weights(scores_NM, method.integration, method.tau)
    believed_NM = scores_NM if method.cotraining else plain_NM
    return expected_labels(targets_NC, smoothed(plain_NM, method.smoothing), believed_NM, space.index)


def _margins(scores_NM: np.ndarray) -> np.ndarray:
    """Gap of the two best scores, for the report, whether or not the method weights by it. `[N]`."""
    if scores_NM.shape[1] == 1:
        return np.ones(len(scores_NM))
    top = np.sort(scores_NM, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])
