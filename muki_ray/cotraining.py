"""Which teacher knows a row, learned from two views of it by co-training (Blum and Mitchell, 1998): no label is read.

A score speaks of one row; the corpus knows more. Rows that read alike belong to the same teacher, and a teacher's
scores look different on its own rows. So two classifiers guess the owner of a row, one from its words
(`text_view.py`), one from all scores of all teachers, each taught by the other:

1. start: `w` from what the teachers say of the row alone (`cotraining_start.py`);
2. the text's classifier learns `w`; the scores' classifier learns what the text's says;
3. belief = `w * text ** a * scores ** b`, as for independent witnesses, each less the shares that it learned and with
   those of the teachers in their place; twice more the classifiers learn from that. `a` and `b` are 3 for a classifier
   that is right about rows it has not learned from, less for one that is not (`_slope`): words that say nothing of a
   row's teacher have no say.

The start is the method's score. That is a guide only where the teachers speak on one scale, so unless all agrees as it is
there is a second one, from ranks: of the rows with the same answer from a teacher, those that it is most certain of are its
own, at first as many as its count of labels suggests. Then as many as the beliefs that come of it give to a label, and so on,
while that brings ranks and words closer (`misranked`): within an answer, what a teacher is certain of is what it knows, even
where nothing else can be compared. Of both starts the one stays whose beliefs and whose words ranks agree with better:
beliefs hold the start's own word and would agree by themselves, words do not but say less. Where words say nothing of the
ranks it is the score: what one teacher owns nearly all of has own rows at every rank.

Where words say next to nothing of the ranks (words of two languages say nothing of each other) an encoder is asked that was
trained on much text (`embedding_view.py`). All this is done a second time with what it makes of the texts beside the words, and
the words learn the beliefs that come of it (`retell`). That stays if ranks agree with it better than with what words found
alone. Then rows of the sample keep the encoder's beliefs; others have no embedding, and get what the words have learned of it
(where words say nothing at all, what they would have got without it).
Where words suffice it is not asked: its errors have a system that a student made from it takes over, those of words have none.

No classifier judges a row that it learned from: each is fitted three times, every time without a third of the texts.
A row where two teachers are close teaches little. The *shares* of the teachers are estimated once (`shares`), from what
the text's classifier says of the rows that the scores are surest of: were they taken from the beliefs, scores that lean
to one teacher throughout would lean further with each round. For the same reason texts in several scripts
(`scripts.py`) are compared with texts in their own: a teacher that was tuned in English is surer of any English text, and
that text looks like English is no witness of its own. Both views are taken less their mean over the script, and each
script has shares of its own. What this cannot mend: languages in one script; and where one teacher owns nearly all and
the texts tell teachers apart badly, the others are overrated. Beliefs are probabilities over the teachers.

Pure: arrays and texts in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, S rows of a sample, R rows that are remembered, M teachers, F folds, G scripts, D columns of the text's view,
X scores of a row.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from muki_ray.cotraining_rounds import (
    FOLDS,
    SCORES_PENALTY,
    TEXT_PENALTY,
    Matrix,
    Taught,
    View,
    means,
    retell,
    said,
    teach,
)
from muki_ray.cotraining_start import Start, bins, by_rank, by_score, start_of
from muki_ray.cotraining_views import Views
from muki_ray.embedding_view import Embed, principal
from muki_ray.errors import StoreError
from muki_ray.scripts import group_of, groups
from muki_ray.text_view import axes, counts, folds, keys, rarity, view
from muki_ray.uncertainty import softmax

# rows that are learned from at most, so that fitting stays short beside scoring
MOST_ROWS = 20_000
# beliefs that ranks agree with so well leave nothing to mend
_WELL_RANKED = 0.005
# labels are counted again at most so often, and as long as that leaves this much of the words' disagreement or less
_RECOUNTS, _MENDED = 4, 0.98
# words that disagree with ranks so often (by chance it is half of the time) say nothing of them
_SAY_NOTHING = 0.47
# words that disagree with ranks so often leave something for an encoder to say
_SAY_LITTLE = 0.42
# an encoder that leaves more than this of the words' disagreement tells nothing that they do not
_TELLS = 0.9
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True)
class CoTraining:
    """The fitted classifiers.

    Attributes:
        start: log odds from what the teachers say of a row alone.
        scripts_G: their names; all others count as the first.
        prior_GM: log of the teachers' shares, less the logs of the shares that the two classifiers have learned.
        emphasis_2: how many times the text's classifier counts, and the scores'.
        rarity_D: of the text's columns.
        centre_GX, scale_X: of the scores.
        text_FDM, text_bias_FGM, scores_FXM, scores_bias_FM: coefficients, one set per fold left out.
        key_R, belief_RM: beliefs about rows that an encoder has read, by key of text and scores in ascending order; without an encoder, none.
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
    key_R: NDArray[np.uint64]
    belief_RM: NDArray[np.float32]

    def __call__(self, views: Views) -> Matrix:
        """Beliefs about some rows, `[N, M]`, rows sum to 1."""
        if not len(views):
            return np.zeros(np.shape(views.scores_NM))
        place_N, group_N = folds(views.texts, FOLDS), group_of(views.texts, self.scripts_G.tolist())
        text = view(counts(views.texts), self.rarity_D)
        seen = (np.asarray(views.seen_NX, dtype=np.float64) - self.centre_GX[group_N]) / self.scale_X
        odds = self.start(views, group_N) + self.prior_GM[group_N].astype(np.float64)
        of_text, of_scores = self.emphasis_2.astype(np.float64)
        for f in range(FOLDS):
            rows = np.flatnonzero(place_N == f)
            if len(rows):
                bias = self.text_bias_FGM[f, group_N[rows]]
                odds[rows] += of_text * said(text[rows], self.text_FDM[f], bias)
                odds[rows] += of_scores * said(seen[rows], self.scores_FXM[f], self.scores_bias_FM[f])
        belief = softmax(odds)
        if len(self.key_R):
            key_N = keys(views.texts, views.seen_NX)
            place_N = np.minimum(np.searchsorted(self.key_R, key_N), len(self.key_R) - 1)
            known_N = self.key_R[place_N] == key_N
            belief[known_N] = self.belief_RM[place_N[known_N]]
        return belief

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


def fit_cotraining(views: Views, embed: Embed | None = None) -> CoTraining:
    """Learn from a sample of the corpus; the result does not depend on how many threads there are.

    Args:
        embed: what an encoder makes of texts; only asked where words say little.

    Raises:
        ValueError: no rows.
    """
    if not len(views):
        raise ValueError("co-training needs rows to learn from, got none")
    counted = counts(views.texts)
    rarity_D = rarity(counted)
    scripts_G = groups(views.texts)
    group_S = group_of(views.texts, scripts_G)
    scores_SX = np.asarray(views.seen_NX, dtype=np.float64)
    centre_GX, scale_X = (
        means(scores_SX, group_S).astype(np.float32),
        scores_SX.std(axis=0).astype(np.float32),
    )
    scale_X[scale_X < _LEAST_SPREAD] = 1.0
    seen = (scores_SX - centre_GX[group_S]) / scale_X
    place_S = folds(views.texts, FOLDS)

    def both(text: Matrix) -> tuple[View, View]:
        return View(text, place_S, TEXT_PENALTY), View(seen, place_S, SCORES_PENALTY)

    def outcome(start: Start, found: Taught) -> _Outcome:
        return _Outcome(
            start, found, *(misranked(views, group_S, part) for part in (found.belief, found.heard))
        )

    def best_of(text: Matrix) -> _Outcome:
        return _best(
            lambda start: outcome(start, teach(start(views, group_S), *both(text), group_S)), views, group_S
        )

    with threadpool_limits(1):
        words = view(counted, rarity_D)
        axes_DL = axes(words)
        text = np.asarray(words @ axes_DL, dtype=np.float64)
        # of one script alone the classifier's bias is as good
        mean_GL = means(text, group_S) if len(scripts_G) > 1 else np.zeros((1, text.shape[1]))
        text -= mean_GL[group_S]
        best = best_of(text)
    key_R, belief_RM = np.zeros(0, np.uint64), np.zeros((0, len(views.labels_M)), np.float32)
    embedded = None
    if embed is not None and best.words > _SAY_LITTLE and not _is_settled(best, views):
        embedded = embed(views.texts)
    if embedded is not None:
        with threadpool_limits(1):
            meant = best_of(np.hstack([text, principal(embedded, group_S)]))
            start, belief = meant.start, meant.found.belief
            retold = outcome(start, retell(start(views, group_S), belief, *both(text), group_S))
        if _is_mended(best, meant, retold):
            key_R, belief_RM = _remembered(views, belief)
            # words that say nothing have learned nothing either: rows that the encoder has not read stay as they were
            best = retold if retold.words <= _SAY_NOTHING else best
    found = best.found
    axes_FLM, bias_FM = found.text.coefficients()
    bias_FGM = bias_FM[:, None] - np.matmul(mean_GL.astype(np.float32), axes_FLM)
    return CoTraining(
        best.start, np.array(scripts_G), found.prior_GM.astype(np.float32), found.emphasis_2.astype(np.float32), rarity_D,
        centre_GX, scale_X, np.matmul(axes_DL, axes_FLM), bias_FGM, *found.seen.coefficients(), key_R,
        belief_RM,
    )  # fmt: skip


def _remembered(views: Views, belief_SM: Matrix) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """Keys and beliefs, equal rows once, with the mean of theirs."""
    key_N = keys(views.texts, views.seen_NX)
    key_R, place_S, rows_R = np.unique(key_N, return_inverse=True, return_counts=True)
    belief_RM = np.zeros((len(key_R), belief_SM.shape[1]))
    np.add.at(belief_RM, place_S, belief_SM)
    return key_R, (belief_RM / rows_R[:, None]).astype(np.float32)


@dataclass(frozen=True)
class _Outcome:
    """A start, what the rounds made of it, and how badly ranks agree with the beliefs and with the text's classifier."""

    start: Start
    found: Taught
    beliefs: float
    words: float


def _best(taught: Callable[[Start], _Outcome], views: Views, group_S: NDArray[np.int64]) -> _Outcome:
    """Of both starts the one whose outcome ranks agree with better."""
    of_scores = taught(by_score(views))
    if _is_settled(of_scores, views):
        return of_scores
    start = by_rank(views, group_S)
    of_ranks = taught(start)
    for _ in range(_RECOUNTS):
        again = taught(start.counted(views, group_S, of_ranks.found.belief))
        if again.words > _MENDED * of_ranks.words:
            break
        of_ranks = again
    return _better(of_scores, of_ranks)


def _is_settled(outcome: _Outcome, views: Views) -> bool:
    """Whether nothing is left to mend."""
    return len(views.labels_M) == 1 or outcome.beliefs < _WELL_RANKED


def _better(first: _Outcome, other: _Outcome) -> _Outcome:
    """The one that ranks agree with better; the first where words say nothing of the other's."""
    if other.words > _SAY_NOTHING:
        return first
    return min(first, other, key=lambda one: one.beliefs * one.words)


def _is_mended(best: _Outcome, meant: _Outcome, retold: _Outcome) -> bool:
    """Whether ranks agree better with an encoder's beliefs, and with what words learned of these, than with the words' own.

    The encoder alone is no judge of itself: it may have learned the ranks' errors, and then agrees with them best of all.
    """
    if meant.words > _TELLS * best.words or meant.beliefs >= best.beliefs:
        return False
    return retold.words > _SAY_NOTHING or _better(best, retold) is retold


def misranked(views: Views, group_S: NDArray[np.int64], belief_SM: Matrix) -> float:
    """How often ranks contradict the beliefs, from 0 to 1.

    Of two rows with the same answer from a teacher, in one script, of which one is its own and the other is not, it should
    be more certain of its own: one less the area under the ROC curve, by soft membership, the mean over all teachers and
    answers. An answer counts by `own * other / rows`. 0.5 where no row belongs to one and none to another.
    """
    wins = pairs = 0.0
    for m, bin_S in enumerate(bins(views, group_S).T):
        own_S = belief_SM[:, m]
        levels, rank_S = np.unique(views.certainty_NM[:, m], return_inverse=True)
        # rows of one bin and one certainty are a tie
        tie, place_S = np.unique(bin_S * len(levels) + rank_S, return_inverse=True)
        own_T, other_T = (np.bincount(place_S, weights=part) for part in (own_S, 1.0 - own_S))
        _, first, of_bin_T = np.unique(tie // len(levels), return_index=True, return_inverse=True)
        below_T = np.cumsum(other_T) - other_T
        below_T -= below_T[first][of_bin_T]
        won, own, other = (
            np.bincount(of_bin_T, weights=part) for part in (own_T * (below_T + other_T / 2), own_T, other_T)
        )
        wins += float((won / (own + other)).sum())
        pairs += float((own * other / (own + other)).sum())
    return 1.0 - wins / pairs if pairs > _LEAST_SPREAD else 0.5
