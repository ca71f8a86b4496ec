"""What integration learns from the corpus before it starts, and applies to every row.

A standardisation of the scores, co-training, and the level below which no teacher knows a row.

The one door from evidence to the scores that teachers are compared by. Knows the run folder's files; knows no models,
no Ray.

Shapes: N rows, S rows of a sample, M teachers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from muki_ray.config_method import AnyMethod
from muki_ray.cotraining import MOST_ROWS, CoTraining, fit_cotraining
from muki_ray.cotraining_views import Views, joined, views_of
from muki_ray.embedding_view import Embed
from muki_ray.standardisation import Raw, Standardisation, ZScore, fit, from_json
from muki_ray.store import Folder
from muki_ray.text_view import shown
from muki_ray.uncertainty import Floats, TeacherEvidence, scores

_FILE = "cotraining.npz"


@dataclass(frozen=True)
class Rows:
    """Some rows as integration sees them: `evidence` of the M teachers, and the same rows of the corpus (text[, text_pair])."""

    evidence: Sequence[TeacherEvidence]
    corpus: pa.Table

    def shown(self) -> list[str]:
        """What a view of the text reads of each row; methods that compare scores alone never ask."""
        pair = "text_pair" in self.corpus.column_names
        return shown(self.corpus["text"].to_pylist(), self.corpus["text_pair"].to_pylist() if pair else None)


@dataclass(frozen=True)
class Sample:
    """Rows to learn from: raw scores `[S, M]`, and where the method co-trains its views, with the raw scores for its own."""

    scores_SM: NDArray[np.float64]
    views: Views | None = None


@dataclass(frozen=True)
class Level:
    """How high the best of a row's z-scored scores must be for the row to belong to any teacher."""

    zscore: ZScore
    least: float

    def known(self, scores_NM: Floats) -> NDArray[np.bool_]:
        """Whether any teacher knows the row, from raw scores. `[N]`."""
        return np.asarray(self.zscore(scores_NM).max(axis=1) >= self.least)


@dataclass(frozen=True)
class Learned:
    """What was learned; the default is nothing, leaves scores as they are and lets every row count."""

    standardisation: Standardisation = field(default_factory=Raw)
    cotraining: CoTraining | None = None
    level: Level | None = None

    def __call__(self, score: str, rows: Rows) -> NDArray[np.float64]:
        """The scores that teachers are compared by, `[N, M]`."""
        scores_NM = self.standardisation(scores(score, list(rows.evidence)))
        if self.cotraining is None:
            return scores_NM
        return self.cotraining(views_of(rows.evidence, scores_NM, rows.shown()))

    def known(self, score: str, rows: Rows) -> NDArray[np.bool_]:
        """Rows that some teacher knows, `[N]`; all where nothing was learned of that."""
        if self.level is None:
            return np.ones(len(rows.corpus), dtype=np.bool_)
        return self.level.known(scores(score, list(rows.evidence)))

    def write(self, folder: Folder) -> dict[str, Any] | None:
        """Store it beside the supervision; returns what the manifest says of it, None where nothing was learned."""
        if self.cotraining is not None:
            folder.write_bytes(_FILE, self.cotraining.to_bytes())
        elif isinstance(self.standardisation, Raw) and self.level is None:
            return None
        return {
            "standardisation": self.standardisation.to_json(),
            "cotraining": None if self.cotraining is None else _FILE,
            "level": None
            if self.level is None
            else {"zscore": self.level.zscore.to_json(), "least": self.level.least},
        }

    @classmethod
    def read(cls, folder: Folder, facts: Mapping[str, Any] | None) -> Learned:
        """What `write` stored and said.

        Raises:
            StoreError: it is something else.
        """
        if facts is None:
            return cls()
        file, level = facts["cotraining"], facts["level"]
        zscore = None if level is None else from_json(level["zscore"])
        return cls(
            from_json(facts["standardisation"]),
            None if file is None else CoTraining.from_bytes(folder.read_bytes(file)),
            Level(zscore, float(level["least"])) if isinstance(zscore, ZScore) else None,
        )


def must_learn(method: AnyMethod) -> bool:
    """Whether the method has to see the corpus' evidence before it integrates any of it."""
    return method.standardise != "none" or method.cotraining or method.abstain > 0


def most_rows(method: AnyMethod, otherwise: int) -> int:
    """Rows that are enough to learn from."""
    return min(MOST_ROWS, otherwise) if method.cotraining else otherwise


def sample(method: AnyMethod, rows: Rows) -> Sample:
    """What learning needs of some rows."""
    scores_SM = scores(method.score, list(rows.evidence))
    if not method.cotraining:
        return Sample(scores_SM)
    return Sample(scores_SM, views_of(rows.evidence, scores_SM, rows.shown()))


def learn(method: AnyMethod, parts: Iterable[Sample], embed: Embed | None = None) -> Learned:
    """Learn from all parts of the sample, in their order.

    Args:
        embed: what the student's base model makes of texts; co-training asks where words say little.

    Raises:
        ValueError: no rows.
    """
    parts = list(parts)
    scores_SM = np.concatenate([part.scores_SM for part in parts])
    if not len(scores_SM):
        raise ValueError("no rows to learn from")
    standardisation, level = fit(method.standardise, scores_SM), None
    if method.abstain:
        zscore = fit("zscore", scores_SM)
        assert isinstance(zscore, ZScore)
        level = Level(zscore, float(np.quantile(zscore(scores_SM).max(axis=1), method.abstain)))
    if not method.cotraining:
        return Learned(standardisation, level=level)
    views = joined([part.views for part in parts if part.views is not None])
    fitted = fit_cotraining(replace(views, scores_NM=standardisation(scores_SM)), embed)
    return Learned(standardisation, fitted, level)
