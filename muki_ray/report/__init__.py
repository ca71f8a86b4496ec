"""What a run hands back besides the student: numbers, pictures, one page, one table.

Knows no Ray, no Torch, no MLflow. `draw` makes the pictures that the inputs allow, `write_report` writes
all of it, `results_table` is for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muki_ray.report import plots
from muki_ray.report.page import Example, write_report
from muki_ray.report.table import result_rows, results_table
from muki_ray.statistics import CorpusStatistics, owner_counts
from muki_ray.uncertainty import Floats

__all__ = ["CorpusStatistics", "Example", "draw", "results_table", "write_report"]


def draw(
    teachers: Sequence[str],
    labels: Sequence[str],
    *,
    metrics: Mapping[str, Any] | None = None,
    statistics: CorpusStatistics | None = None,
    scores_NM: Floats | None = None,
    owner_N: NDArray[np.int64] | None = None,
    confusion_CC: NDArray[np.int64] | None = None,
) -> dict[str, bytes]:
    """Every picture that the inputs allow, name -> PNG, in the order of the page.

    Args:
        teachers: M names.
        labels: the union, C names.
        metrics: as `evaluate_run` returns them: `accuracy`.
        statistics: over the corpus: `rows_won`, `scores`, `margins`.
        scores_NM, owner_N: of the test set: `scores_by_owner`, where an owner is known.
        confusion_CC: of the student on the test set: `confusion`.

    Raises:
        ValueError: shapes that disagree, or scores outside [0, 1].
    """
    pictures: dict[str, bytes] = {}
    if metrics and any(row.accuracy is not None for row in result_rows(metrics)):
        pictures["accuracy"] = plots.accuracy_bars(metrics)
    if statistics is not None and statistics.rows:
        pictures["rows_won"] = plots.rows_won(teachers, statistics.won_M)
        pictures["scores"] = plots.score_distributions(teachers, statistics.scores_MB)
        # with one teacher every margin is 1 by definition
        if len(teachers) > 1:
            pictures["margins"] = plots.margin_histogram(statistics.margin_B, statistics.margin_mean)
    if scores_NM is not None and owner_N is not None and (owner_N >= 0).any():
        right_MB, wrong_MB = owner_counts(scores_NM, owner_N)
        pictures["scores_by_owner"] = plots.owner_score_distributions(teachers, right_MB, wrong_MB)
    if confusion_CC is not None:
        pictures["confusion"] = plots.confusion_picture(confusion_CC, labels)
    return pictures
