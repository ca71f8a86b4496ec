"""The rounds of co-training: two classifiers that teach each other who owns a row, from a start on. See `cotraining.py`.

Pure: arrays in, arrays out. Knows no texts, no files, no models, no Ray.

Shapes: S rows of a sample, M teachers, F folds, G scripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from scipy.special import log_softmax

from muki_ray.uncertainty import softmax

FOLDS = 3
_ROUNDS = 3
# classifiers that learned half-hearted beliefs speak more softly than they know: their log odds count so many times
_EMPHASIS = 3.0
# a row teaches by this power of how far its best belief is ahead
_DOUBT = 0.5
# how much the start's own shares count where they are estimated; the least share, of an even one
_CAUTION, _LEAST_SHARE = 0.03, 0.01
# strength of the squared penalty, in rows
TEXT_PENALTY, SCORES_PENALTY = 1.0, 3.0
_STEPS = 60
# no classifier may rule a teacher out
_LEAST = 1e-5
_LEAST_SPREAD = 1e-9

Matrix = NDArray[np.float64]


def members(group_S: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Each group's rows."""
    return [np.flatnonzero(group_S == g) for g in range(int(group_S.max()) + 1)]


def means(rows: Matrix, group_S: NDArray[np.int64]) -> Matrix:
    """Of each group's rows: `[G, width]`."""
    return np.stack([rows[mine].mean(axis=0) for mine in members(group_S)])


@dataclass(frozen=True)
class Taught:
    """What the rounds have come to.

    Attributes:
        belief: who owns a row, `[S, M]`.
        heard: what the text's classifier says of that, of rows that it has not learned from, `[S, M]`.
        share_GM: of the rows, by script.
        prior_GM: log odds.
        emphasis_2: how many times either classifier counts.
        text, seen: the classifiers.
    """

    belief: Matrix
    heard: Matrix
    share_GM: Matrix
    prior_GM: Matrix
    emphasis_2: Matrix
    text: View
    seen: View


def teach(start: Matrix, text: View, seen: View, group_S: NDArray[np.int64]) -> Taught:
    """The rounds, from log odds of each row's owner, `[S, M]`."""
    taught = _round(start, softmax(start), text, seen, group_S, None)
    for _ in range(_ROUNDS - 1):
        taught = _round(start, taught.belief, text, seen, group_S, taught.share_GM)
    return taught


def retell(start: Matrix, belief: Matrix, text: View, seen: View, group_S: NDArray[np.int64]) -> Taught:
    """One round, from beliefs that others came to: the text's classifier learns these, the scores' what the text's says."""
    share_GM = np.stack([belief[rows].mean(axis=0) for rows in members(group_S)])
    return _round(start, belief, text, seen, group_S, share_GM)


def _round(
    start: Matrix, belief: Matrix, text: View, seen: View, group_S: NDArray[np.int64], share_GM: Matrix | None
) -> Taught:
    """Both classifiers learn, and give new beliefs.

    Args:
        belief: to learn from.
        share_GM: None estimates it, from beliefs that are the start's alone.
    """
    groups = members(group_S)
    weight_S = _sure(belief) ** _DOUBT
    of_text = text.learn(belief, weight_S)
    heard = np.exp(of_text)
    if share_GM is None:
        share_GM = np.stack([shares(heard[rows], belief[rows]) for rows in groups])
    of_scores = seen.learn(heard, np.ones(len(heard)))
    a, b = (_EMPHASIS * min(1.0, _slope(one, belief, weight_S, group_S)) for one in (of_text, of_scores))
    # both say what they were taught: their own shares go, the estimated ones come
    taught_M = weight_S @ belief / weight_S.sum()
    by_text_GM = _log(taught_M) + _leaning(of_text, groups)
    by_scores_GM = _log(heard.mean(axis=0)) + _leaning(of_scores, groups)
    prior_GM = max(a, b) * _log(share_GM) - a * by_text_GM - b * by_scores_GM
    belief = softmax(start + a * of_text + b * of_scores + prior_GM[group_S])
    return Taught(belief, heard, share_GM, prior_GM, np.array([a, b]), text, seen)


def _leaning(said_SM: Matrix, groups: Sequence[NDArray[np.int64]]) -> Matrix:
    """What a classifier says of each group beside what it says of all, as log odds: `[G, M]`; of one group, 0."""
    said = np.exp(said_SM)
    return np.stack([_log(said[rows].mean(axis=0)) for rows in groups]) - _log(said.mean(axis=0))


def shares(said_SM: Matrix, first_SM: Matrix) -> Matrix:
    """Share of the rows that each teacher owns, `[M]`, sums to 1.

    On the rows that a teacher's score is surest of, what the text's classifier says on average tells what it says of
    this teacher's rows; the shares are those with which these averages add up to its average over all rows. What the
    scores' extremes do not show (a score that is a little too high everywhere) so has no say. Where the texts tell
    teachers apart badly the averages are alike, and the shares stay near those of the start alone.

    Args:
        said_SM: probabilities that a classifier gives to rows which it has not learned from.
        first_SM: beliefs from the start alone.
    """
    count = first_SM.shape[1]
    surest_SM = _sure(first_SM)[:, None] * np.eye(count)[first_SM.argmax(axis=1)]
    total_M = surest_SM.sum(axis=0)
    of_own_MM = surest_SM.T @ said_SM / np.clip(total_M, _LEAST_SPREAD, None)[:, None]
    # no row speaks for this teacher: its share stays
    of_own_MM[total_M < _LEAST_SPREAD] = said_SM.mean(axis=0)
    wanted = np.concatenate([said_SM.mean(axis=0), _CAUTION * first_SM.mean(axis=0)])
    found, _ = nnls(np.concatenate([of_own_MM.T, _CAUTION * np.eye(count)]), wanted)
    found = np.clip(found / found.sum(), _LEAST_SHARE / count, None)
    return np.asarray(found / found.sum())


def _slope(said_SM: Matrix, belief_SM: Matrix, weight_S: Matrix, group_S: NDArray[np.int64]) -> float:
    """How far what a classifier says of rows that it has not learned from agrees with the beliefs: 1 is as it says.

    The power of its probabilities, beside shares of each group's own, that comes closest to the beliefs (Platt's slope);
    0 where it says nothing, or the contrary.
    """
    away, groups = said_SM - said_SM.mean(axis=0), members(group_S)

    def loss(found: Matrix) -> tuple[float, Matrix]:
        share_GM = found[1:].reshape(len(groups), -1)
        logs = log_softmax(found[0] * away + share_GM[group_S], axis=1)
        off = weight_S[:, None] * (np.exp(logs) - belief_SM)
        of_groups = [off[rows].sum(axis=0) for rows in groups]
        value = -float((weight_S[:, None] * belief_SM * logs).sum())
        return value, np.concatenate([[(off * away).sum()], *of_groups])

    start = np.concatenate([[1.0], *(_log(belief_SM[rows].mean(axis=0)) for rows in groups)])
    return max(0.0, float(minimize(loss, start, jac=True, method="L-BFGS-B").x[0]))


def _sure(belief_SM: Matrix) -> Matrix:
    """How far the best belief is ahead of the second, `[S]`; 1 everywhere where no row prefers any teacher."""
    if belief_SM.shape[1] < 2:
        return np.ones(len(belief_SM))
    best = np.sort(belief_SM, axis=1)
    ahead = best[:, -1] - best[:, -2]
    return np.asarray(ahead if ahead.max() > _LEAST_SPREAD else np.ones(len(ahead)))


def _log(share_M: Matrix) -> Matrix:
    return np.asarray(np.log(np.clip(share_M, _LEAST, None)))


class View:
    """One view of the sample, and the classifiers that see it: one per fold left out."""

    def __init__(self, rows: Any, place_S: NDArray[np.int64], penalty: float) -> None:
        self.rows, self.place_S, self.penalty = rows, place_S, penalty
        self._found: list[NDArray[np.float32]] = []

    def learn(self, belief_SM: Matrix, weight_S: Matrix) -> Matrix:
        """Log probabilities `[S, M]` of classifiers that learned the beliefs of the other folds' rows, by weight."""
        answers = np.zeros(belief_SM.shape)
        found = []
        for f in range(FOLDS):
            rest, own = np.flatnonzero(self.place_S != f), np.flatnonzero(self.place_S == f)
            before = self._found[f] if self._found else np.zeros((self.rows.shape[1] + 1, belief_SM.shape[1]))
            fitted = _fitted(self.rows[rest], belief_SM[rest], weight_S[rest], self.penalty, before)
            found.append(fitted.astype(np.float32))
            answers[own] = said(self.rows[own], found[-1][:-1], found[-1][-1])
        self._found = found
        return answers

    def coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Weights `[F, width, M]` and biases `[F, M]`."""
        stacked = np.stack(self._found)
        return stacked[:, :-1], stacked[:, -1]


def _fitted(rows: Matrix, belief: Matrix, weight: Matrix, penalty: float, before: NDArray[Any]) -> Matrix:
    """Multinomial logistic regression on soft labels: weights, and the biases as the last row, `[width + 1, M]`."""
    shape, weight = before.shape, weight[:, None]

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(shape)
        logs = log_softmax(rows @ weights[:-1] + weights[-1], axis=1)
        off = weight * (np.exp(logs) - belief)
        value = -(weight * belief * logs).sum() + 0.5 * penalty * float((weights[:-1] ** 2).sum())
        slope = np.concatenate([rows.T @ off + penalty * weights[:-1], off.sum(axis=0, keepdims=True)])
        return value, slope.reshape(-1)

    start = np.asarray(before, dtype=np.float64).reshape(-1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return np.asarray(found.reshape(shape))


def said(rows: Any, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Matrix:
    """Log probabilities of a classifier, none of them below that of `_LEAST`. `[N, M]`."""
    logs = log_softmax((rows @ weights).astype(np.float64) + bias, axis=1)
    return np.maximum(logs, np.log(_LEAST))
