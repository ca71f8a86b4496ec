"""Metrics of a run: arrays in, plain numbers out.

Pure: knows no Ray, no Torch, no MLflow, no files. Whatever it returns can be written as JSON: plain
numbers, and None where a value is undefined.

Shapes: N test rows, M teachers, C union labels, C_m labels of teacher m.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score

from muki_ray.errors import ConfigError, CorpusError
from muki_ray.integration import concatenated_ensemble, scatter
from muki_ray.labels import LabelSpace
from muki_ray.uncertainty import Floats, softmax

Ints = NDArray[np.int64]

CALIBRATION_BINS = 15
# keys of a run's metrics: a classifier to compare with, whose name is a key beside them, cannot be called so. The first
# line is what `evaluate_run` gives, the second what the assessment and the stages of a run add
RESERVED = (
    "student", "ensemble", "teachers", "selection", "rows_tested", "rows_outside_union",
    "rows_unanswered", "rows", "corpus", "calibration",
)  # fmt: skip
# how far a probability may leave [0, 1], or a row's sum exceed 1, by rounding in half precision
_ROUNDING = 1e-2


def predictions(probs_NC: Floats) -> Ints:
    """Place of each row's top probability, the first of equals; -1 where the whole row is 0. `[N]`."""
    probs_NC = np.asarray(probs_NC)
    return np.where(probs_NC.max(axis=1) > 0, probs_NC.argmax(axis=1), -1).astype(np.int64)


def classification_metrics(probs_NC: Floats, truth_N: Ints, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1 and calibration of one classifier over the union.

    Args:
        probs_NC: probabilities over the union. A row may sum to less than 1 (the classifier knows labels
            that the union does not); a row of zeros predicts nothing and is wrong.
        truth_N: places of the gold labels in the union; -1 where the gold label is outside the union.
        labels: names of the union.

    Returns:
        accuracy: share of rows whose top label is the gold label. Gold outside the union counts as wrong.
        macro_f1: unweighted mean of F1 over the union labels that occur in `truth_N`. Rows with gold
            outside the union are false positives of the label they got, and are no class of their own.
            None where every gold label is outside.
        ece: expected calibration error, `sum_b n_b / N * |accuracy_b - confidence_b|`, over 15 bins of
            equal width on the top probability, each open below and closed above (the lowest holds 0 too).
            Gold outside the union counts as wrong here too.
        rows: N.

    Raises:
        ValueError: shapes that disagree, no row, NaN, values that are no probabilities, or a gold label
            that is no place in the union.
    """
    probs_NC, truth_N = _checked(probs_NC, truth_N, len(labels))
    predicted_N = predictions(probs_NC)
    correct_N = _correct(predicted_N, truth_N)
    present = np.unique(truth_N[truth_N >= 0])
    macro_f1 = None
    if len(present):
        macro_f1 = float(f1_score(truth_N, predicted_N, labels=present, average="macro", zero_division=0))
    return {
        "accuracy": float(correct_N.mean()),
        "macro_f1": macro_f1,
        "ece": _calibration_error(probs_NC.max(axis=1), correct_N),
        "rows": len(truth_N),
    }


def owners(space: LabelSpace, truth_N: Ints) -> Ints:
    """The one teacher that knows each row's gold label; -1 where none does, or several do. `[N]`."""
    truth_N = _checked_truth(truth_N, len(space))
    knows_MC = _knows(space)
    owner_C = np.where(knows_MC.sum(axis=0) == 1, knows_MC.argmax(axis=0), -1)
    # place -1 reads the last label, and is then overruled
    return np.where(truth_N >= 0, owner_C[truth_N], -1).astype(np.int64)


def selection_metrics(scores_NM: Floats, owner_N: Ints) -> dict[str, Any]:
    """How well the scores find the teacher that knows the row; rows without a known owner stay out.

    Args:
        scores_NM: scores, higher is better.
        owner_N: place of the teacher that knows the gold label, -1 if unknown (see `owners`).

    Returns:
        accuracy: share of rows whose best score, the first of equals, is the owner's.
        auroc: area under the ROC curve of the owners' scores against the other teachers' scores, pooled
            over all (row, teacher) pairs.
        rows: rows with a known owner.

        accuracy and auroc are None where no owner is known, and with one teacher: there is no choice.

    Raises:
        ValueError: shapes that disagree, no row, scores that are not finite, an owner that is no teacher.
    """
    scores_NM, owner_N = np.asarray(scores_NM, dtype=np.float64), np.asarray(owner_N)
    if scores_NM.ndim != 2 or owner_N.shape != scores_NM.shape[:1] or not scores_NM.size:
        raise ValueError(f"scores {scores_NM.shape} and owners {owner_N.shape} must be [N, M] and [N], N > 0")
    if not np.isfinite(scores_NM).all():
        raise ValueError("scores must be finite")
    teachers = scores_NM.shape[1]
    _check_places(owner_N, teachers, "owner")
    known_N = owner_N >= 0
    scores_NM, owner_N = scores_NM[known_N], owner_N[known_N]
    if teachers == 1 or not len(owner_N):
        return {"accuracy": None, "auroc": None, "rows": len(owner_N)}
    right_NM = owner_N[:, None] == np.arange(teachers)
    return {
        "accuracy": float((scores_NM.argmax(axis=1) == owner_N).mean()),
        "auroc": float(roc_auc_score(right_NM.ravel(), scores_NM.ravel())),
        "rows": len(owner_N),
    }


def compare_setting(name: str) -> str:
    """How messages call a classifier to compare with."""
    return f"corpus.test.compare.{name}"


def check_compare_names(names: Iterable[str]) -> None:
    """Refuse classifiers to compare with whose name is a key of the metrics; worth a call before a run.

    Raises:
        ConfigError: a reserved or empty name.
    """
    for name in names:
        if name in RESERVED or not name.strip():
            raise ConfigError(
                f"corpus.test.compare: {name!r} cannot be the name of a classifier to compare with; "
                f"choose another, not one of {', '.join(RESERVED)}"
            )


def evaluate_run(
    *,
    space: LabelSpace,
    truth_N: Ints,
    logits: Sequence[Floats],
    scores_NM: Floats,
    student_probs_NC: Floats | None = None,
    compare: Mapping[str, Floats] | None = None,
) -> dict[str, Any]:
    """All metrics of a run on its test set, as one nested dict that can be written as JSON.

    Args:
        space: the union and the teachers' places in it.
        truth_N: places of the gold labels in the union, -1 where a gold label is outside.
        logits: per teacher, deterministic logits `[N, C_m]`.
        scores_NM: scores of the teachers, higher is better.
        student_probs_NC: the student's probabilities; None leaves `student` out.
        compare: name -> probabilities `[N, C]` of further classifiers.

    Returns:
        `student`, `ensemble` (softmax over all teachers' logits side by side) and one entry per name in
        `compare`: `accuracy`, `macro_f1`, `ece`, see `classification_metrics`.
        `teachers.<name>`: the same over all rows, its probabilities placed in the union, and
        `own_accuracy` over the `own_rows` rows whose gold label it knows (None where there is none).
        `selection`: see `selection_metrics`. `rows_tested`: N. `rows_outside_union`: rows among them
        whose gold label no teacher knows.

    Raises:
        ConfigError: a name in `compare` is reserved.
        CorpusError: no row has a gold label of the union.
        ValueError: shapes that disagree, no row, NaN.
    """
    compare = compare or {}
    check_compare_names(compare)
    truth_N = _checked_truth(truth_N, len(space))
    if (truth_N < 0).all():
        raise CorpusError(
            f"none of the {len(truth_N)} test rows has a label that a teacher knows ({len(space)} labels: "
            f"{', '.join(space.names[:5])}, ...); check test.label and the teachers' labels maps"
        )
    _check_teachers(space, truth_N, logits, scores_NM)
    result: dict[str, Any] = {}
    if student_probs_NC is not None:
        result["student"] = _three(student_probs_NC, truth_N, space)
    result["ensemble"] = _three(concatenated_ensemble(logits, space.index, len(space)), truth_N, space)
    result["teachers"] = {
        name: _teacher(scatter(softmax(z), places, len(space)), truth_N, space, m)
        for m, (name, z, places) in enumerate(zip(space.teachers, logits, space.index, strict=True))
    }
    result |= {name: _three(probs_NC, truth_N, space) for name, probs_NC in compare.items()}
    result["selection"] = selection_metrics(scores_NM, owners(space, truth_N))
    return result | {"rows_tested": len(truth_N), "rows_outside_union": int((truth_N < 0).sum())}


def confusion_matrix(probs_NC: Floats, truth_N: Ints) -> Ints:
    """Counts `[C, C]`: rows gold, columns predicted. Rows with gold outside the union, or with no
    prediction (all zeros), stay out.

    Raises:
        ValueError: as `classification_metrics`.
    """
    size = np.asarray(probs_NC).shape[-1]
    probs_NC, truth_N = _checked(probs_NC, truth_N, size)
    predicted_N = predictions(probs_NC)
    inside_N = (truth_N >= 0) & (predicted_N >= 0)
    pairs = truth_N[inside_N] * size + predicted_N[inside_N]
    return np.bincount(pairs, minlength=size * size).reshape(size, size).astype(np.int64)


def top_confusions(matrix_CC: Ints, labels: Sequence[str], most: int = 20) -> list[dict[str, Any]]:
    """The most frequent mistakes, first the largest: `gold`, `predicted`, `rows`, and `share`, the share
    of that gold label's rows (those in the matrix)."""
    if matrix_CC.shape != (len(labels), len(labels)):
        raise ValueError(f"a confusion matrix {matrix_CC.shape} does not fit {len(labels)} labels")
    wrong_CC = matrix_CC.copy()
    np.fill_diagonal(wrong_CC, 0)
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:most]
    gold_N = matrix_CC.sum(axis=1)
    return [
        {
            "gold": labels[gold],
            "predicted": labels[predicted],
            "rows": int(wrong_CC[gold, predicted]),
            "share": float(wrong_CC[gold, predicted] / gold_N[gold]),
        }
        for gold, predicted in (divmod(int(place), len(labels)) for place in order)
        if wrong_CC[gold, predicted]
    ]


def _three(probs_NC: Floats, truth_N: Ints, space: LabelSpace) -> dict[str, Any]:
    metrics = classification_metrics(probs_NC, truth_N, space.names)
    return {key: metrics[key] for key in ("accuracy", "macro_f1", "ece")}


def _teacher(probs_NC: Floats, truth_N: Ints, space: LabelSpace, m: int) -> dict[str, Any]:
    own_N = (truth_N >= 0) & _knows(space)[m][truth_N]
    correct_N = _correct(predictions(probs_NC), truth_N)
    return {
        **_three(probs_NC, truth_N, space),
        "own_accuracy": float(correct_N[own_N].mean()) if own_N.any() else None,
        "own_rows": int(own_N.sum()),
    }


def _knows(space: LabelSpace) -> NDArray[np.bool_]:
    """Whether a teacher knows a label, `[M, C]`."""
    knows_MC = np.zeros((len(space.index), len(space)), dtype=bool)
    for m, places in enumerate(space.index):
        knows_MC[m, places] = True
    return knows_MC


def _correct(predicted_N: Ints, truth_N: Ints) -> NDArray[np.bool_]:
    # without the second half, a row without a prediction (-1) would be right on gold outside the union (-1)
    return np.asarray((predicted_N == truth_N) & (truth_N >= 0))


def _calibration_error(confidence_N: Floats, correct_N: NDArray[np.bool_]) -> float:
    # n_b * |accuracy_b - confidence_b| is |sum of (correct - confidence) in b|: no division by empty bins
    bin_N = np.clip(np.ceil(confidence_N * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gap_B = np.bincount(bin_N, weights=correct_N - confidence_N, minlength=CALIBRATION_BINS)
    return float(np.abs(gap_B).sum() / len(confidence_N))


def _checked(probs_NC: Floats, truth_N: Ints, size: int) -> tuple[NDArray[np.float64], Ints]:
    probs_NC = np.asarray(probs_NC, dtype=np.float64)
    if probs_NC.ndim != 2 or probs_NC.shape[1] != size:
        raise ValueError(f"probabilities have shape {probs_NC.shape}, expected [N, {size}]")
    truth_N = _checked_truth(truth_N, size)
    if len(truth_N) != len(probs_NC):
        raise ValueError(f"{len(probs_NC)} rows of probabilities, but {len(truth_N)} gold labels")
    # NaN fails both comparisons
    inside = (probs_NC.min() >= -_ROUNDING) and (probs_NC.sum(axis=1) <= 1 + _ROUNDING).all()
    if not inside:
        raise ValueError("these are no probabilities: NaN, negative, or a row sums to more than 1")
    return np.clip(probs_NC, 0.0, 1.0), truth_N


def _checked_truth(truth_N: Ints, size: int) -> Ints:
    truth_N = np.asarray(truth_N)
    if truth_N.ndim != 1 or not len(truth_N):
        raise ValueError(f"gold labels have shape {truth_N.shape}, expected [N] with N >= 1")
    _check_places(truth_N, size, "gold label")
    return truth_N.astype(np.int64)


def _check_places(places_N: NDArray[Any], size: int, what: str) -> None:
    if not np.issubdtype(places_N.dtype, np.integer) or places_N.min() < -1 or places_N.max() >= size:
        span = f"{places_N.dtype} from {places_N.min()} to {places_N.max()}"
        raise ValueError(f"each {what} must be an integer in -1..{size - 1}, got {span}")


def _check_teachers(space: LabelSpace, truth_N: Ints, logits: Sequence[Floats], scores_NM: Floats) -> None:
    expected = [(len(truth_N), len(places)) for places in space.index]
    shapes = [np.shape(z) for z in logits]
    if shapes != expected:
        raise ValueError(f"teachers' logits have shapes {shapes}, expected {expected}")
    if np.shape(scores_NM) != (len(truth_N), len(expected)):
        raise ValueError(f"scores have shape {np.shape(scores_NM)}, expected {(len(truth_N), len(expected))}")
    for name, z in zip(space.teachers, logits, strict=True):
        if not np.isfinite(z).all():
            raise ValueError(f"logits of teacher {name!r} are not all finite")
