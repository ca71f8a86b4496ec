"""A suite's rows: what each teacher is trained on, the corpus, the tests. Drawn with one seed: all runs share them.

The corpus is what the teachers were trained on, with labels hidden, as in the paper's released code; rows that no
teacher may learn from (`leave_out`) stay in it. Knows pandas and the data folder; knows no models.

Shapes: N rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from quality_suites import Deal, Scale, Suite, Texts

from muki_ray.errors import ConfigError

_SEED = 0


@dataclass(frozen=True)
class Material:
    """Frames with columns text, label.

    Attributes:
        teachers: name -> its training rows.
        labels: name -> its labels, sorted.
        corpus: a gold label that no teacher knows is None.
        tests: name -> rows whose label some teacher knows; the first is the one methods are compared on.
        outside: texts that no teacher has a label for; None where the suite names none.
    """

    teachers: dict[str, pd.DataFrame]
    labels: dict[str, list[str]]
    corpus: pd.DataFrame
    tests: dict[str, pd.DataFrame]
    outside: pd.DataFrame | None = None

    @property
    def union(self) -> list[str]:
        """All labels, sorted."""
        return sorted({label for own in self.labels.values() for label in own})

    def all_texts(self) -> list[str]:
        """Every text of the suite, for what depends on the words in it."""
        frames = [*self.teachers.values(), self.corpus, *self.tests.values()]
        frames += [] if self.outside is None else [self.outside]
        return sorted({text for frame in frames for text in frame["text"]})


def material(suite: Suite, scale: Scale, data: Path, most: int | None) -> Material:
    """The rows of a suite at a scale.

    Args:
        data: folder with a folder (train.parquet, test.parquet: text, label) per data set.
        most: corpus rows at most; None: all there are.

    Raises:
        ConfigError: a data set, a column or a value that is not there, or a teacher left with too little.
    """
    settings = suite.at(scale)
    pool = _drawn([_rows(data, one, "train") for one in suite.sources], settings.train_rows)
    own = _dealt(suite.teachers, pool) if isinstance(suite.teachers, Deal) else _named(suite, pool)
    labels = {name: sorted(frame["label"].unique()) for name, frame in own.items()}
    for name, has in labels.items():
        if len(has) < 2:
            raise ConfigError(
                f"teacher {name} has rows of {len(has)} label(s); a classifier needs 2: give it more"
            )
    known = {label for has in labels.values() for label in has}
    corpus = pool.assign(label=pool["label"].where(pool["label"].isin(known), None))
    corpus = _thinned(_shared(corpus, labels, suite.shares), most)
    tests = {}
    for name, sources in suite.all_tests.items():
        frames = [_rows(data, one, "test") for one in sources]
        tests[name] = _drawn([frame[frame["label"].isin(known)] for frame in frames], settings.test_rows)
    outside = (
        _drawn([_rows(data, one, "test") for one in suite.outside], settings.test_rows)
        if suite.outside
        else None
    )
    return Material(
        {name: _plain(frame) for name, frame in own.items()},
        labels,
        _plain(corpus),
        {name: _plain(frame) for name, frame in tests.items()},
        None if outside is None else _plain(outside.assign(label=None)),
    )


def _rows(data: Path, texts: Texts, split: str) -> pd.DataFrame:
    split = texts.split or split
    path = data / texts.data / f"{split}.parquet"
    if not path.is_file():
        raise ConfigError(
            f"no file {texts.data}/{split}.parquet in {str(data)!r}; give --data or set MUKI_DATA"
        )
    frame = pd.read_parquet(path)
    for column, values in texts.where.items():
        absent = sorted(set(values) - set(frame[column].unique())) if column in frame else values
        if absent:
            raise ConfigError(f"{texts.data} has no {column} {absent[0]!r}; check the suite's `where`")
        frame = frame[frame[column].isin(values)]
    return frame.assign(data=texts.data)


def _drawn(frames: list[pd.DataFrame], most: int | None) -> pd.DataFrame:
    """At most so many rows, evenly from each frame: a small data set is not drowned by a large one."""
    if most is None:
        return pd.concat(frames, ignore_index=True)
    taken: list[pd.DataFrame] = []
    for place, frame in enumerate(sorted(frames, key=len)):
        share = (most - sum(map(len, taken))) // (len(frames) - place)
        taken.append(_thinned(frame, share))
    return pd.concat(taken, ignore_index=True)


def _thinned(frame: pd.DataFrame, most: int | None) -> pd.DataFrame:
    if most is None or most >= len(frame):
        return frame
    return frame.sample(n=most, random_state=_SEED).sort_index()


def _dealt(deal: Deal, pool: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if deal.by not in pool:
        raise ConfigError(f"{deal.data} has no column {deal.by!r}; check the suite's teachers.by")
    blocks = deal.blocks(sorted(pool[deal.by].unique()))
    return {name: pool[pool[deal.by].isin(values)] for name, values in blocks.items()}


def _named(suite: Suite, pool: pd.DataFrame) -> dict[str, pd.DataFrame]:
    own = {}
    assert not isinstance(suite.teachers, Deal)
    for part in suite.teachers:
        rows = pool["data"] == part.data
        for column, values in part.where.items():
            rows &= pool[column].isin(values)
        if part.labels is not None:
            absent = sorted(set(part.labels) - set(pool[rows]["label"].unique()))
            if absent:
                raise ConfigError(f"teacher {part.name}: no row has label {absent[0]!r}; check the spelling")
            rows &= pool["label"].isin(part.labels)
        own[part.name] = pool[rows]
    return own


def _shared(corpus: pd.DataFrame, labels: dict[str, list[str]], shares: dict[str, float]) -> pd.DataFrame:
    """As many rows as the shares allow: of each teacher the rows whose label it alone knows."""
    if not shares:
        return corpus
    rest = [name for name in labels if name not in shares]
    wanted = shares | dict.fromkeys(rest, (1 - sum(shares.values())) / max(1, len(rest)))
    alone = {
        name: set(own) - {label for other, theirs in labels.items() if other != name for label in theirs}
        for name, own in labels.items()
    }
    parts = {name: corpus[corpus["label"].isin(alone[name])] for name in labels}
    total = min(len(parts[name]) / share for name, share in wanted.items() if share > 0)
    taken = [_thinned(parts[name], int(round(total * share, 6))) for name, share in wanted.items()]
    return pd.concat(taken).sort_index()


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    gold = [label if isinstance(label, str) else None for label in frame["label"]]
    return pd.DataFrame({"text": frame["text"].tolist(), "label": pd.Series(gold, dtype=object)})


def places(labels: list[str], gold: pd.Series) -> np.ndarray:
    """Place of each gold label in `labels`, -1 where there is none. `[N]`."""
    place = {name: i for i, name in enumerate(labels)}
    return np.array([place.get(label, -1) for label in gold], dtype=np.int64)
