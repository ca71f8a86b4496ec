"""What co-training sees of some rows: scores of all kinds, what each teacher answers, and the words.

Pure: arrays and texts in, arrays out. Knows no files, no models, no Ray.

Shapes: N rows, M teachers, C_m labels of teacher m, X scores of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muki_ray.uncertainty import SAMPLED, SCORES, UNBOUNDED, Floats, TeacherEvidence, scores

# a score of 1 counts as so far from 1
_NEAREST = 1e-3


@dataclass(frozen=True)
class Views:
    """Some rows of the corpus.

    Attributes:
        scores_NM: the method's score, finite.
        seen_NX: `score_view` of the rows; its first M columns tell how certain each teacher is of its answer.
        answers_NM: place of each teacher's best label among its own, `0 .. C_m - 1`; labels that the user merged are still apart.
        labels_M: how many labels each teacher has, C_m.
        texts: what is `shown` of the rows.
    """

    scores_NM: Floats
    seen_NX: Floats
    answers_NM: NDArray[np.int64]
    labels_M: tuple[int, ...]
    texts: Sequence[str]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def certainty_NM(self) -> Floats:
        """How certain each teacher is of its answer: `mc_entropy`, or `entropy` where nothing was sampled."""
        return self.seen_NX[:, : len(self.labels_M)]


def views_of(evidence: Sequence[TeacherEvidence], scores_NM: Floats, texts: Sequence[str]) -> Views:
    """The views that the evidence gives of rows with these scores and texts."""
    return Views(
        scores_NM, score_view(evidence), np.stack([one.logits.argmax(axis=1) for one in evidence], axis=1),
        tuple(one.logits.shape[1] for one in evidence), texts,
    )  # fmt: skip


def joined(parts: Sequence[Views]) -> Views:
    """All rows of all parts, in their order; of the same teachers."""
    return Views(
        np.concatenate([part.scores_NM for part in parts]),
        np.concatenate([part.seen_NX for part in parts]),
        np.concatenate([part.answers_NM for part in parts]),
        parts[0].labels_M,
        [text for part in parts for text in part.texts],
    )


def score_view(evidence: Sequence[TeacherEvidence]) -> NDArray[np.float64]:
    """Every score that the evidence allows, of every teacher: `[N, X]`. The first M columns are `mc_entropy`, or `entropy`.

    Scores that end at 1 crowd there, so that their distance from it comes beside them, as a logarithm.
    """
    sampled = all(one.mc_probs is not None for one in evidence)
    first = "mc_entropy" if sampled else "entropy"
    names = [first, *(name for name in SCORES if name != first and (sampled or name not in SAMPLED))]
    found = {name: scores(name, list(evidence)) for name in names}
    spread = [-np.log(1.0 + _NEAREST - part) for name, part in found.items() if name not in UNBOUNDED]
    return np.concatenate([*found.values(), *spread], axis=1)
