"""What gold labels say of teachers, scores and targets, before any student is trained.

Integration is the product's (`muki_ray.supervision`), and so are scores, standardisations and metrics.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from quality_case import CORPUS, Case
from quality_methods import method_of

from muki_ray.config_method import AnyMethod, MukiMethod
from muki_ray.evaluation import evaluate_run, owners, selection_metrics
from muki_ray.labels import LabelSpace
from muki_ray.learned import Learned, Rows, learn, must_learn, sample
from muki_ray.standardisation import fit
from muki_ray.student.objectives import WeightedKl, objective_of
from muki_ray.supervision import supervise
from muki_ray.teachers.evidence import EvidenceArrays
from muki_ray.uncertainty import SAMPLED, SCORES, scores
from muki_ray.workflow.embed import reads

_STANDARDISATIONS = ("none", "zscore", "quantile", "owner")


def integrated(
    texts: Sequence[str], evidence: list[EvidenceArrays], space: LabelSpace, method: AnyMethod,
    learned: Learned,
) -> pa.Table:  # fmt: skip
    """The product's integration of one shard that holds all rows.

    Raises:
        ValueError: a row was set aside, so that the figures would speak of other rows.
    """
    corpus = pa.table({"row_id": np.arange(len(texts)), "text": pa.array(list(texts), pa.string())})
    result = supervise(corpus, evidence, space, method, learned)
    if result.quarantine is not None:
        raise ValueError(
            f"{len(result.quarantine)} rows have no finite answer, such as: {result.quarantine['reason'][0]}"
        )
    return result.table


def learned_from(case: Case, evidence: list[EvidenceArrays], method: AnyMethod) -> Learned:
    """What the method learns from the corpus, here from all of its rows."""
    if not must_learn(method):
        return Learned()
    texts = case.texts(CORPUS)
    everything = [one.take(np.ones(len(texts), dtype=np.bool_)) for one in evidence]
    rows = Rows(everything, pa.table({"text": pa.array(texts, pa.string())}))
    return learn(method, [sample(method, rows)], case.embed if reads(method) else None)


def of_teachers(case: Case) -> dict[str, Any]:
    """What is known without any method: each teacher's own accuracy, and the accuracy of choosing always right.

    Returns:
        teachers: name -> accuracy and own_accuracy on the first test; ensemble; oracle: share of rows on which a
        teacher that knows the gold label gives it.
    """
    where = next(iter(case.material.tests))
    logits, truth_N = logits_of(case, where), case.truth(where)
    metrics = evaluate_run(
        space=case.space, truth_N=truth_N, logits=logits, scores_NM=_scores("entropy", _plain(case, where))
    )
    right_N = np.zeros(len(truth_N), dtype=bool)
    for z, own in zip(logits, case.space.index, strict=True):
        right_N |= own[z.argmax(axis=1)] == truth_N
    return {
        "teachers": metrics["teachers"],
        "ensemble": metrics["ensemble"],
        "oracle": float(right_N.mean()),
        "rows_with_one_owner": metrics["selection"]["rows"],
    }


def of_scores(case: Case, dropouts: dict[str, AnyMethod]) -> dict[str, dict[str, Any]]:
    """How well every score finds the teacher that knows a row of the first test, under every standardisation.

    Args:
        dropouts: how the Monte-Carlo samples were drawn -> a method with that dropout.

    Returns:
        `<score> <standardisation>`, for sampled scores followed by the dropout's name -> accuracy, auroc.
    """
    where = next(iter(case.material.tests))
    owner_N = owners(case.space, case.truth(where))
    found = {}
    for score in SCORES:
        asked = dropouts if score in SAMPLED else {"": next(iter(dropouts.values()))}
        for dropout, method in asked.items():
            on_corpus, on_test = (
                _scores(score, case.evidence(method, place)[0]) for place in (CORPUS, where)
            )
            for kind in _STANDARDISATIONS:
                said = selection_metrics(fit(kind, on_corpus)(on_test), owner_N)  # type: ignore[arg-type]
                found[" ".join(filter(None, (score, kind, dropout)))] = {
                    k: said[k] for k in ("accuracy", "auroc")
                }
    return found


def of_targets(case: Case, method: AnyMethod, table: pa.Table, learned: Learned) -> dict[str, Any]:
    """What gold labels say of a method's targets and choices."""
    found: dict[str, Any] = {}
    truth_N, targets = case.truth(CORPUS), matrix(table, "target")
    if targets.shape[1] == len(case.space) and isinstance(
        objective_of(method, case.space, case.specs), WeightedKl
    ):
        known_N = truth_N >= 0
        found["target_accuracy"] = float((targets.argmax(axis=1) == truth_N)[known_N].mean())
    if isinstance(method, MukiMethod):
        where = next(iter(case.material.tests))
        evidence, _ = case.evidence(method, where)
        of_test = integrated(case.texts(where), evidence, case.space, method, learned)
        on_test = selection_metrics(matrix(of_test, "scores"), owners(case.space, case.truth(where)))
        on_corpus = selection_metrics(matrix(table, "scores"), owners(case.space, truth_N))
        found |= {
            "selection_accuracy": on_test["accuracy"],
            "auroc": on_test["auroc"],
            "corpus_selection_accuracy": on_corpus["accuracy"],
        }
    return found


def _plain(case: Case, where: str) -> list[EvidenceArrays]:
    """Evidence of one pass without dropout."""
    method = method_of("vanilla_kd", case.seed)
    assert method is not None
    return case.evidence(method, where)[0]


def logits_of(case: Case, where: str) -> list[NDArray[np.float32]]:
    """Per teacher the logits of the pass without dropout, `[N, C_m]`, on the corpus or a test."""
    return [one.logits for one in _plain(case, where)]


def _scores(name: str, evidence: list[EvidenceArrays]) -> NDArray[np.float64]:
    """Raw scores `[N, M]` of all rows."""
    return scores(name, [one.take(np.ones(len(one.logits), dtype=np.bool_)) for one in evidence])


def matrix(table: pa.Table, column: str) -> NDArray[np.float32]:
    """A column of lists as `[N, width]`."""
    values = table[column].combine_chunks().flatten().to_numpy()
    return np.asarray(values.reshape(len(table), -1))
