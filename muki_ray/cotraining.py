"""Which teacher knows a row, learned from two views of it by co-training (Blum and Mitchell, 1998): no label is read.

A score speaks of one row; the corpus knows more. Rows that read alike belong to the same teacher, and a teacher's
scores look different on its own rows. So two classifiers guess the owner of a row, one from its words
(`text_view.py`), one from all scores of all teachers, each taught by the other:

1. start: `w` from the method's score alone (`cotraining_start.py`);
2. the text's classifier learns `w`; the scores' classifier learns what the text's says;
3. belief = `w * text ** a * scores ** b`, as for independent witnesses, each less the shares that it learned and with
   those of the teachers in their place; twice more the classifiers learn from that. `a` and `b` are 3 for a classifier
   that is right about rows it has not learned from, less for one that is not (`_slope`): words that say nothing of a
   row's teacher have no say.

Where that leaves the classifiers in doubt, the score was a bad guide: teachers of two labels, say, are sure of nearly
everything, each in its own measure. Then all begins anew from ranks: a row belongs to the teachers for which it is among
the rows they are most certain of, as many as the shares that the first beginning found. Where less than half of the
doubt is left, that stays.

No classifier judges a row that it learned from: each is fitted three times, every time without a third of the texts.
A row where two teachers are close teaches little. The *shares* of the teachers are estimated once (`shares`), from what
the text's classifier says of the rows that the scores are surest of: were they taken from the beliefs, scores that lean
to one teacher throughout would lean further with each round. For the same reason texts in several scripts
(`scripts.py`) are compared with texts in their own: a teacher that was tuned in English is surer of any English text, and
that text looks like English is no witness of its own. Both views are taken less their mean over the script, and each
script has shares of its own. What this cannot mend: languages in one script; and where one teacher owns nearly all and
the texts tell teachers apart badly, the others are overrated. Beliefs are probabilities over the teachers.

Pure: arrays and texts in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, M teachers, F folds, G scripts, D columns of the text's view, X scores of a row.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits

from muki_ray.cotraining_start import Start, by_rank, by_score, start_of
from muki_ray.errors import StoreError
from muki_ray.scripts import group_of, groups
from muki_ray.text_view import axes, counts, folds, rarity, view
from muki_ray.uncertainty import SAMPLED, SCORES, UNBOUNDED, Floats, TeacherEvidence, scores, softmax

# rows that are learned from at most, so that fitting stays short beside scoring
MOST_ROWS = 20_000
_FOLDS = 3
_ROUNDS = 3
# classifiers that learned half-hearted beliefs speak more softly than they know: their log odds count so many times
_EMPHASIS = 3.0
# classifiers that end in more doubt than this begin anew, and what comes of that stays if it leaves so much of the doubt
_DOUBTFUL, _RESOLVED = 0.1, 0.5
# a row teaches by this power of how far its best belief is ahead
_DOUBT = 0.5
# how much the scores' own shares count where they are estimated; the least share, of an even one
_CAUTION, _LEAST_SHARE = 0.03, 0.01
# strength of the squared penalty, in rows
_TEXT_PENALTY, _SCORES_PENALTY = 1.0, 3.0
_STEPS = 60
# no classifier may rule a teacher out
_LEAST = 1e-5
_LEAST_SPREAD = 1e-9
# a score of 1 counts as so far from 1
_NEAREST = 1e-3

Matrix = NDArray[np.float64]


def score_view(evidence: Sequence[TeacherEvidence]) -> Matrix:
    """Every score that the evidence allows, of every teacher: `[N, X]`. The first M columns are `mc_entropy`, or `entropy`.

    Scores that end at 1 crowd there, so that their distance from it comes beside them, as a logarithm.
    """
    sampled = all(one.mc_probs is not None for one in evidence)
    first = "mc_entropy" if sampled else "entropy"
    names = [first, *(name for name in SCORES if name != first and (sampled or name not in SAMPLED))]
    found = {name: scores(name, list(evidence)) for name in names}
    spread = [-np.log(1.0 + _NEAREST - part) for name, part in found.items() if name not in UNBOUNDED]
    return np.concatenate([*found.values(), *spread], axis=1)


@dataclass(frozen=True)
class CoTraining:
    """The fitted classifiers.

    Attributes:
        start: log odds from scores alone.
        scripts_G: their names; all others count as the first.
        prior_GM: log of the teachers' shares, less the logs of the shares that the two classifiers have learned.
        emphasis_2: how many times the text's classifier counts, and the scores'.
        rarity_D: of the text's columns.
        centre_GX, scale_X: of the scores.
        text_FDM, text_bias_FGM, scores_FXM, scores_bias_FM: coefficients, one set per fold left out.
    """

    start: Start
    scripts_G: NDArray[np.str_]
    prior_GM: NDArray[np.float32]
    emphasis_2: NDArray[np.float32]
    rarity_D: NDArray[np.float32]
    centre_GX: NDArray[np.float32]
    scale_X: NDArray[np.float32]
    text_FDM: NDArray[np.float32]
    text_bias_FGM: NDArray[np.float32]
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
        place_N, group_N = folds(texts, _FOLDS), group_of(texts, self.scripts_G.tolist())
        text = view(counts(texts), self.rarity_D)
        seen = (np.asarray(views_NX, dtype=np.float64) - self.centre_GX[group_N]) / self.scale_X
        odds = self.start(scores_NM, views_NX) + self.prior_GM[group_N].astype(np.float64)
        of_text, of_scores = self.emphasis_2.astype(np.float64)
        for f in range(_FOLDS):
            rows = np.flatnonzero(place_N == f)
            if len(rows):
                bias = self.text_bias_FGM[f, group_N[rows]]
                odds[rows] += of_text * _said(text[rows], self.text_FDM[f], bias)
                odds[rows] += of_scores * _said(seen[rows], self.scores_FXM[f], self.scores_bias_FM[f])
        return softmax(odds)

    def to_bytes(self) -> bytes:
        """A NumPy archive; `from_bytes` gives back an equal object."""
        sink = io.BytesIO()
        parts: dict[str, Any] = {n: np.asarray(value) for n, value in vars(self).items() if n != "start"}
        parts |= self.start.arrays()
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
                parts: dict[str, Any] = {
                    one.name: found[one.name] for one in fields(cls) if one.name != "start"
                }
                return cls(start=start_of(found), **parts)
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
    scores_SM, views_SX = (np.asarray(part, dtype=np.float64) for part in (scores_SM, views_SX))
    if not len(scores_SM):
        raise ValueError("co-training needs rows to learn from, got none")
    counted = counts(texts)
    rarity_D = rarity(counted)
    scripts_G = groups(texts)
    group_S = group_of(texts, scripts_G)
    centre_GX, scale_X = _means(views_SX, group_S).astype(np.float32), views_SX.std(axis=0).astype(np.float32)
    scale_X[scale_X < _LEAST_SPREAD] = 1.0
    place_S = folds(texts, _FOLDS)
    with threadpool_limits(1):
        words = view(counted, rarity_D)
        axes_DL = axes(words)
        text, seen = np.asarray(words @ axes_DL, dtype=np.float64), (views_SX - centre_GX[group_S]) / scale_X
        # of one script alone the classifier's bias is as good
        mean_GL = _means(text, group_S) if len(scripts_G) > 1 else np.zeros((1, text.shape[1]))
        text -= mean_GL[group_S]

        def taught(start: Start) -> _Taught:
            views = _View(text, place_S, _TEXT_PENALTY), _View(seen, place_S, _SCORES_PENALTY)
            return _teach(start(scores_SM, views_SX), *views, group_S)

        start: Start = by_score(scores_SM)
        found = taught(start)
        if found.doubt > _DOUBTFUL:
            other = by_rank(views_SX[:, : scores_SM.shape[1]], found.belief.mean(axis=0))
            anew = taught(other)
            if anew.doubt < _RESOLVED * found.doubt:
                start, found = other, anew
    axes_FLM, bias_FM = found.text.coefficients()
    bias_FGM = bias_FM[:, None] - np.matmul(mean_GL.astype(np.float32), axes_FLM)
    return CoTraining(
        start, np.array(scripts_G), found.prior_GM.astype(np.float32), found.emphasis_2.astype(np.float32), rarity_D,
        centre_GX, scale_X, np.matmul(axes_DL, axes_FLM), bias_FGM, *found.seen.coefficients(),
    )  # fmt: skip


def _members(group_S: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Each group's rows."""
    return [np.flatnonzero(group_S == g) for g in range(int(group_S.max()) + 1)]


def _means(rows: Matrix, group_S: NDArray[np.int64]) -> Matrix:
    """Of each group's rows: `[G, width]`."""
    return np.stack([rows[mine].mean(axis=0) for mine in _members(group_S)])


@dataclass(frozen=True)
class _Taught:
    """What the rounds have come to: beliefs `[S, M]`, the prior's log odds, emphases, and the classifiers."""

    belief: Matrix
    prior_GM: Matrix
    emphasis_2: Matrix
    text: _View
    seen: _View

    @property
    def doubt(self) -> float:
        """How much of the rows' belief is not with their best teacher, on average."""
        return 1.0 - float(self.belief.max(axis=1).mean())


def _teach(start: Matrix, text: _View, seen: _View, group_S: NDArray[np.int64]) -> _Taught:
    """The rounds, from log odds of each row's owner, `[S, M]`."""
    first = belief = softmax(start)
    members = _members(group_S)
    share_GM = None
    for _ in range(_ROUNDS):
        weight_S = _sure(belief) ** _DOUBT
        of_text = text.learn(belief, weight_S)
        heard = np.exp(of_text)
        if share_GM is None:
            share_GM = np.stack([shares(heard[rows], first[rows]) for rows in members])
        of_scores = seen.learn(heard, np.ones(len(heard)))
        a, b = (_EMPHASIS * min(1.0, _slope(one, belief, weight_S, group_S)) for one in (of_text, of_scores))
        # both say what they were taught: their own shares go, the estimated ones come
        taught_M = weight_S @ belief / weight_S.sum()
        by_text_GM = _log(taught_M) + _leaning(of_text, members)
        by_scores_GM = _log(heard.mean(axis=0)) + _leaning(of_scores, members)
        prior_GM = max(a, b) * np.log(share_GM) - a * by_text_GM - b * by_scores_GM
        belief = softmax(start + a * of_text + b * of_scores + prior_GM[group_S])
    return _Taught(belief, prior_GM, np.array([a, b]), text, seen)


def _leaning(said_SM: Matrix, members: Sequence[NDArray[np.int64]]) -> Matrix:
    """What a classifier says of each group beside what it says of all, as log odds: `[G, M]`; of one group, 0."""
    said = np.exp(said_SM)
    return np.stack([_log(said[rows].mean(axis=0)) for rows in members]) - _log(said.mean(axis=0))


def shares(said_SM: Matrix, first_SM: Matrix) -> Matrix:
    """Share of the rows that each teacher owns, `[M]`, sums to 1.

    On the rows that a teacher's score is surest of, what the text's classifier says on average tells what it says of
    this teacher's rows; the shares are those with which these averages add up to its average over all rows. What the
    scores' extremes do not show (a score that is a little too high everywhere) so has no say. Where the texts tell
    teachers apart badly the averages are alike, and the shares stay near those of the scores alone.

    Args:
        said_SM: probabilities that a classifier gives to rows which it has not learned from.
        first_SM: beliefs from the scores alone.
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
    away, members = said_SM - said_SM.mean(axis=0), _members(group_S)

    def loss(found: Matrix) -> tuple[float, Matrix]:
        share_GM = found[1:].reshape(len(members), -1)
        logs = log_softmax(found[0] * away + share_GM[group_S], axis=1)
        off = weight_S[:, None] * (np.exp(logs) - belief_SM)
        of_groups = [off[rows].sum(axis=0) for rows in members]
        value = -float((weight_S[:, None] * belief_SM * logs).sum())
        return value, np.concatenate([[(off * away).sum()], *of_groups])

    start = np.concatenate([[1.0], *(_log(belief_SM[rows].mean(axis=0)) for rows in members)])
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


class _View:
    """One view of the sample, and the classifiers that see it: one per fold left out."""

    def __init__(self, rows: Any, place_S: NDArray[np.int64], penalty: float) -> None:
        self.rows, self.place_S, self.penalty = rows, place_S, penalty
        self._found: list[NDArray[np.float32]] = []

    def learn(self, belief_SM: Matrix, weight_S: Matrix) -> Matrix:
        """Log probabilities `[S, M]` of classifiers that learned the beliefs of the other folds' rows, by weight."""
        said = np.zeros(belief_SM.shape)
        found = []
        for f in range(_FOLDS):
            rest, own = np.flatnonzero(self.place_S != f), np.flatnonzero(self.place_S == f)
            before = self._found[f] if self._found else np.zeros((self.rows.shape[1] + 1, belief_SM.shape[1]))
            fitted = _fitted(self.rows[rest], belief_SM[rest], weight_S[rest], self.penalty, before)
            found.append(fitted.astype(np.float32))
            said[own] = _said(self.rows[own], found[-1][:-1], found[-1][-1])
        self._found = found
        return said

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


def _said(rows: Any, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> Matrix:
    """Log probabilities of a classifier, none of them below that of `_LEAST`. `[N, M]`."""
    logs = log_softmax((rows @ weights).astype(np.float64) + bias, axis=1)
    return np.maximum(logs, np.log(_LEAST))
