"""Every method on one suite with one seed: the figures. Same student, rows and epochs for every method.

Integration is the product's (`muki_ray.supervision`), and so are training and metrics. What a score or a target is
worth is judged with gold labels that no method sees.

Shapes: N rows, M teachers, C union labels.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from quality_bias import fit_bias
from quality_cache import Arrays, arrays, code, digest
from quality_case import CORPUS, OUTSIDE, Case
from quality_choice import integrated, learned_from, logits_of, matrix, of_targets
from quality_doubt import of_doubt
from quality_methods import BEST_TEACHER, BIASED_ENSEMBLE, DIRECT, method_of
from quality_train import gold_table, held_out, recipe, train

import muki_ray
from muki_ray.assess import Classifier, predict
from muki_ray.calibration import fit_temperature, tempered
from muki_ray.config_method import MukiMethod
from muki_ray.evaluation import classification_metrics
from muki_ray.integration import concatenated_ensemble, scatter
from muki_ray.student.objectives import WeightedKl, objective_of
from muki_ray.supervision import expected
from muki_ray.uncertainty import softmax

_PACKAGE = Path(muki_ray.__file__).parent
# what a student is trained by: results of other code are made anew
_TRAINED_BY = (_PACKAGE / "student", _PACKAGE / "baselines")
_HELD_OUT = "held out"
_EVALUATED = ("accuracy", "macro_f1", "ece")


def figures(case: Case, name: str, students: bool) -> dict[str, Any]:
    """One method's figures.

    Args:
        students: whether to train; without, only what can be said of scores and targets.

    Returns:
        accuracy, macro_f1, ece (on the first test), tests (accuracy on each), held_out_kl, seconds (of training);
        where the suite has texts that are about no label also what `of_doubt` says; for methods that integrate
        temperature and tempered_ece (the ECE at the temperature that the product fits to held-out rows);
        for methods that integrate also target_accuracy (share of corpus rows whose target's top label is gold, of
        those that a teacher knows) and scoring_seconds; where a score chooses the teacher, selection_accuracy and
        auroc on the first test, and corpus_selection_accuracy.
    """
    if name in DIRECT:
        return _without_student(case, name)
    method = method_of(name, case.seed)
    wanted_NC = None
    if method is None:
        table, objective, found, normalize = _gold(case), WeightedKl(), {}, False
    else:
        evidence, seconds = case.evidence(method, CORPUS)
        learned = learned_from(case, evidence, method)
        table = integrated(case.texts(CORPUS), evidence, case.space, method, learned)
        found = of_targets(case, method, table, learned) | {"scoring_seconds": seconds}
        objective, normalize = objective_of(method, case.space, case.specs), method.weights == "normalize"
        if isinstance(method, MukiMethod):
            wanted_NC = expected(table, case.space, method)
    return found | (_student(case, table, objective, normalize, wanted_NC) if students else {})


def _gold(case: Case) -> pa.Table:
    return gold_table(case.texts(CORPUS), case.truth(CORPUS), len(case.space))


def _student(
    case: Case, table: pa.Table, objective: Any, normalize: bool, wanted_NC: NDArray[Any] | None
) -> dict[str, Any]:
    """A student trained on the table, judged on every test; `wanted_NC`: what its temperature is fitted to, if it gets one."""
    training = recipe(case.settings.student_epochs, case.student_rate, case.seed)
    held_out_N = held_out(table, training)
    asked = {
        name: case.texts(name)
        for name in (*case.material.tests, *([OUTSIDE] if case.material.outside is not None else []))
    }
    asked[_HELD_OUT] = table["text"].filter(pa.array(held_out_N)).to_pylist()
    parts = [matrix(table, "target"), table["weight"].to_numpy(), table["row_id"].to_numpy()]
    content = [
        str(case.student_base.name), case.max_length, case.space.names, training.model_dump(mode="json"), normalize,
        objective.content, digest(parts), digest(table["text"].to_pylist()), code(*_TRAINED_BY),
        {name: digest(texts) for name, texts in asked.items()},
    ]  # fmt: skip

    def make() -> Arrays:
        scratch = Path(tempfile.mkdtemp(dir=case.cache))
        try:
            trained = train(
                table, case.space.names, case.student_base, case.max_length, training, scratch / "student",
                normalize=normalize, objective=objective,
            )  # fmt: skip
            student = Classifier("student", str(trained.folder), case.max_length)
            threads = torch.get_num_threads()
            said = {
                f"probs_{name}": predict(student, texts, None, case.space.names, threads)
                for name, texts in asked.items()
            }
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return {name: probs.astype(np.float32) for name, probs in said.items()} | {
            "held_out_kl": np.array(trained.held_out_kl), "seconds": np.array(trained.seconds)
        }  # fmt: skip

    found = arrays(case.cache / "students", content, make)
    judged = {name: _judged(case, name, found[f"probs_{name}"]) for name in case.material.tests}
    told = _told(judged) | {name: float(found[name]) for name in ("held_out_kl", "seconds")}
    first = next(iter(judged))
    probs = found[f"probs_{first}"]
    if OUTSIDE in asked:
        told |= of_doubt(probs, case.truth(first), found[f"probs_{OUTSIDE}"])
    if wanted_NC is not None:
        temperature = fit_temperature(found[f"probs_{_HELD_OUT}"], wanted_NC[held_out_N])
        ece = _judged(case, first, tempered(probs, temperature))["ece"]
        told |= {"temperature": temperature, "tempered_ece": ece}
    return told


def _without_student(case: Case, name: str) -> dict[str, Any]:
    """The ensemble, as it is or with a bias per teacher, or the best teacher, on every test."""
    first, *_ = case.material.tests
    bias_M = _bias(case) if name == BIASED_ENSEMBLE else np.zeros(len(case.specs))

    def ensemble(where: str) -> NDArray[np.float64]:
        logits = [one + bias for one, bias in zip(logits_of(case, where), bias_M, strict=True)]
        return concatenated_ensemble(logits, case.space.index, len(case.space))

    def teacher(m: int) -> Callable[[str], NDArray[np.float64]]:
        return lambda where: scatter(softmax(logits_of(case, where)[m]), case.space.index[m], len(case.space))

    answer = ensemble
    if name == BEST_TEACHER:
        everyone = [teacher(m) for m in range(len(case.specs))]
        answer = max(everyone, key=lambda one: _judged(case, first, one(first))["accuracy"])
    return _told({where: _judged(case, where, answer(where)) for where in case.material.tests})


def _bias(case: Case) -> NDArray[np.float64]:
    """Of each teacher, from the default's beliefs about the corpus."""
    method = method_of("default", case.seed)
    assert method is not None
    evidence, _ = case.evidence(method, CORPUS)
    texts = case.texts(CORPUS)
    table = integrated(texts, evidence, case.space, method, learned_from(case, evidence, method))
    return fit_bias(logits_of(case, CORPUS), matrix(table, "scores"))


def _judged(case: Case, where: str, probs_NC: NDArray[Any]) -> dict[str, Any]:
    return classification_metrics(probs_NC, case.truth(where), case.space.names)


def _told(judged: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of the first test all figures, of each the accuracy."""
    first = next(iter(judged.values()))
    return {key: first[key] for key in _EVALUATED} | {
        "tests": {where: one["accuracy"] for where, one in judged.items()}
    }
