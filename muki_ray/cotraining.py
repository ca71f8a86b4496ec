"""Which teacher knows a row, learned from two views of it by co-training (Blum and Mitchell, 1998): no label is read.

A score speaks of one row; the corpus knows more. Rows that read alike belong to the same teacher, and a teacher's
scores look different on its own rows. So two classifiers guess the owner of a row, one from its words
(`text_view.py`), one from all scores of all teachers, each taught by the other:

1. start: `w = softmax(s / (0.6 sd))` from the method's score alone;
2. the text's classifier learns `w`; the scores' classifier learns what the text's says;
3. belief = `w * (text * scores / share) ** 1.5`, as for independent witnesses; twice more the classifiers learn from that.

No classifier judges a row that it learned from: each is fitted three times, every time without a third of the texts.
Beliefs are probabilities over the teachers. What this cannot mend: scores that lean to one teacher throughout; each
round may then lean further, and the choice end worse than the scores' own. Nothing asks the shares to be alike, but a
teacher that owns a tenth of the corpus is overrated: there it wins nothing over raw scores. Figures:
`benchmarks/results/quality.md`.

Pure: arrays and texts in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, M teachers, F folds, D columns of the text's view, X scores of a row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from muki_ray.errors import StoreError
from muki_ray.text_view import folds, rarity, view
from muki_ray.uncertainty import SAMPLED, SCORES, Floats, TeacherEvidence, scores, softmax

# rows that are learned from at most, so that fitting stays short beside scoring
MOST_ROWS = 20_000
_FOLDS = 3
_ROUNDS = 3
# classifiers that learned half-hearted beliefs speak more softly than they know: their log odds count so many times
_EMPHASIS = 1.5
# the start's temperature, in standard deviations of the scores
_START = 0.6
# strength of the squared penalty, in rows
_TEXT_PENALTY, _SCORES_PENALTY = 1.0, 3.0
_STEPS = 60
# no classifier may rule a teacher out
_LEAST = 1e-5
_LEAST_SPREAD = 1e-9

Matrix = NDArray[np.float64]


def score_view(evidence: Sequence[TeacherEvidence]) -> Matrix:
    """Every score that the evidence allows, of every teacher: `[N, X]`."""
    sampled = all(one.mc_probs is not None for one in evidence)
    names = [name for name in SCORES if sampled or name not in SAMPLED]
    return np.concatenate([scores(name, list(evidence)) for name in names], axis=1)


@dataclass(frozen=True)
class CoTraining:
    """The fitted classifiers.

    Attributes:
        spread: standard deviation of the method's scores, all teachers together.
        share_M: mean of the beliefs that the last classifiers learned from.
        rarity_D: of the text's columns.
        centre_X, scale_X: of the scores.
        text_FDM, text_bias_FM, scores_FXM, scores_bias_FM: coefficients, one set per fold left out.
    """

    spread: float
    share_M: NDArray[np.float32]
    rarity_D: NDArray[np.float32]
    centre_X: NDArray[np.float32]
    scale_X: NDArray[np.float32]
    text_FDM: NDArray[np.float32]
    text_bias_FM: NDArray[np.float32]
    scores_FXM: NDArray[np.float32]
    scores_bias_FM: NDArray[np.float32]

    def __call__(
        self,
        scores_NM: Floats,
        views_NX: Floats,
        texts: Sequence[str],
    ) -> Matrix:
        """Beliefs `[N, M]`, rows sum to 1.

        Args:
            scores_NM: the method's score.
            views_NX: `score_view` of the same rows.
            texts: what is `shown` of them.
        """
        if not len(texts):
            return np.zeros(np.shape(scores_NM))
        place_N = folds(texts, _FOLDS)
        text = view(texts, self.rarity_D)
        seen = (np.asarray(views_NX, dtype=np.float64) - self.centre_X) / self.scale_X
        odds = _start(scores_NM, self.spread) - _EMPHASIS * np.log(self.share_M.astype(np.float64))
        for f in range(_FOLDS):
            rows = np.flatnonzero(place_N == f)
            if len(rows):
                odds[rows] += _EMPHASIS * _said(text[rows], self.text_FDM[f], self.text_bias_FM[f])
                odds[rows] += _EMPHASIS * _said(seen[rows], self.scores_FXM[f], self.scores_bias_FM[f])
        return softmax(odds)

    def to_bytes(self) -> bytes:
        """A NumPy archive; `from_bytes` gives back an equal object."""
        sink = io.BytesIO()
        parts: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        np.savez_compressed(sink, **parts)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> CoTraining:
        """The object that `to_bytes` wrote.

        Raises:
            StoreError: the content is something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as found:
                parts: dict[str, Any] = {one.name: found[one.name] for one in fields(cls)}
            return cls(**{**parts, "spread": float(parts["spread"])})
        except (ValueError, KeyError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise StoreError(
                f"what co-training learned cannot be read ({error!r}); delete the supervision folder and run again"
            ) from error


def fit_cotraining(scores_SM: Floats, views_SX: Floats, texts: Sequence[str]) -> CoTraining:
    """Learn from some rows of the corpus; the result does not depend on how many threads there are.

    Args:
        scores_SM: the method's score, finite.
        views_SX: `score_view` of the same rows.
        texts: what is `shown` of them.

    Raises:
        ValueError: no rows.
    """
    start_SM = np.asarray(scores_SM, dtype=np.float64)
    if not len(start_SM):
        raise ValueError("co-training needs rows to learn from, got none")
    spread = float(start_SM.std())
    rarity_D = rarity(texts)
    views_SX = np.asarray(views_SX, dtype=np.float64)
    centre_X, scale_X = views_SX.mean(axis=0).astype(np.float32), views_SX.std(axis=0).astype(np.float32)
    scale_X[scale_X < _LEAST_SPREAD] = 1.0
    with threadpool_limits(1):
        text = _View(view(texts, rarity_D), folds(texts, _FOLDS), _TEXT_PENALTY)
        seen = _View((views_SX - centre_X) / scale_X, text.place_S, _SCORES_PENALTY)
        start = _start(start_SM, spread)
        belief = softmax(start)
        for _ in range(_ROUNDS):
            share_M = np.clip(belief.mean(axis=0), _LEAST, None)
            of_text = text.learn(belief)
            of_scores = seen.learn(np.exp(of_text))
            belief = softmax(start + _EMPHASIS * (of_text + of_scores - np.log(share_M)))
    return CoTraining(
        spread, share_M.astype(np.float32), rarity_D, centre_X, scale_X,
        *text.coefficients(), *seen.coefficients(),
    )  # fmt: skip


def _start(scores_NM: Floats, spread: float) -> Matrix:
    """Log of the beliefs that the method's score alone gives, up to a constant per row. `[N, M]`."""
    if spread < _LEAST_SPREAD:
        return np.zeros(np.shape(scores_NM))
    return np.asarray(scores_NM, dtype=np.float64) / (_START * spread)


class _View:
    """One view of the sample, and the classifiers that see it: one per fold left out."""

    def __init__(self, rows: Any, place_S: NDArray[np.int64], penalty: float) -> None:
        self.rows, self.place_S, self.penalty = rows, place_S, penalty
        self._found: list[NDArray[np.float32]] = []

    def learn(self, belief_SM: Matrix) -> Matrix:
        """Log probabilities `[S, M]` of classifiers that learned the beliefs of the other folds' rows."""
        said = np.zeros(belief_SM.shape)
        found = []
        for f in range(_FOLDS):
            rest, own = np.flatnonzero(self.place_S != f), np.flatnonzero(self.place_S == f)
            before = self._found[f] if self._found else np.zeros((self.rows.shape[1] + 1, belief_SM.shape[1]))
            fitted = _fitted(self.rows[rest], belief_SM[rest], self.penalty, before)
            found.append(fitted.astype(np.float32))
            said[own] = _said(self.rows[own], found[-1][:-1], found[-1][-1])
        self._found = found
        return said

    def coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights `[F, width, M]` and biases `[F, M]`."""
        stacked = np.stack(self._found)
        return stacked[:, :-1], stacked[:, -1]


def _fitted(rows: Any, belief: Matrix, penalty: float, before: NDArray[Any]) -> Matrix:
    """Multinomial logistic regression on soft labels: weights, and the biases as the last row, `[width + 1, M]`."""
    shape = before.shape

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(shape)
        logs = log_softmax(rows @ weights[:-1] + weights[-1], axis=1)
        off = np.exp(logs) - belief
        value = -(belief * logs).sum() + 0.5 * penalty * float((weights[:-1] ** 2).sum())
        slope = np.concatenate([rows.T @ off + penalty * weights[:-1], off.sum(axis=0, keepdims=True)])
        return value, slope.reshape(-1)

    start = np.asarray(before, dtype=np.float64).reshape(-1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return np.asarray(found.reshape(shape))


def _said(rows: Any, weights: NDArray[Any], bias: NDArray[Any]) -> Matrix:
    """Log probabilities of a classifier, none of them below that of `_LEAST`. `[N, M]`."""
    logs = log_softmax(rows @ weights.astype(np.float64) + bias.astype(np.float64), axis=1)
    return np.maximum(logs, np.log(_LEAST))
