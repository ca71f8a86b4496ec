"""Teachers to measure with: two MiniLM classifiers a data set, each trained on half of its labels, cached.

    python benchmarks/suites.py NAME ... [--data DIR] [--cache DIR]        # train what is missing

Real texts with gold labels, so that the teacher that knows a row is known too. Each set's labels, sorted, are cut
in two contiguous halves (clinc150: its domains; demo: as the demo has them); a teacher sees the training rows of
its half alone. `clinc150-quick` is clinc150 with fewer rows, for a run that must end soon.

Knows data sets, recipes and the cache; knows nothing of what is measured. The data is `--data`, by default
`$MUKI_DATA`, with a folder (train.parquet, test.parquet: text, label) per set; `demo` needs the demo extra alone,
which brings the base model of all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import prepare_demo
from prepare_demo import base_model, train_with_labels

from muki_ray.config import TrainingConfig
from muki_ray.store import fingerprint

CACHE = "~/.cache/muki_ray/benchmarks"


@dataclass(frozen=True)
class Recipe:
    """How a set becomes two teachers and a test.

    Attributes:
        folder: of the data set.
        halves_of: column whose sorted values are cut in two; each half's labels are a teacher's.
        max_length: tokens.
        training: of each teacher.
        train_rows, test_rows: at most so many rows, in all, drawn with seed 0.
    """

    folder: str
    max_length: int
    training: TrainingConfig
    halves_of: str = "label"
    train_rows: int | None = None
    test_rows: int | None = None


def _training(epochs: int, batch_size: int = 32, learning_rate: float = 2e-4) -> TrainingConfig:
    return TrainingConfig(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, patience=None)


RECIPES = {
    "clinc150": Recipe("clinc150", 64, _training(3), halves_of="domain"),
    "clinc150-quick": Recipe(
        "clinc150", 64, _training(2, batch_size=8), halves_of="domain", train_rows=3000, test_rows=2000
    ),
    "trec": Recipe("trec", 64, _training(3)),
    "google_snippets": Recipe("google_snippets", 64, _training(2), train_rows=4000),
    "ag_news": Recipe("ag_news", 128, _training(1), train_rows=8000, test_rows=2000),
    # the paper's learning rate: teachers that are less sure of other teachers' texts
    "ag_news-gentle": Recipe(
        "ag_news", 128, _training(1, learning_rate=2e-5), train_rows=8000, test_rows=2000
    ),
    "newsgroups20": Recipe("newsgroups20", 128, _training(2), train_rows=6000, test_rows=2000),
    "demo": Recipe("demo", prepare_demo.MAX_LENGTH, prepare_demo.RECIPE),
}


@dataclass(frozen=True)
class Suite:
    """Teachers on disk, and what to ask them. N test rows, M = 2 teachers.

    Attributes:
        teachers: name -> folder, as `save_pretrained` wrote it.
        labels: name -> the teacher's labels, in the order of its logits.
        texts: test texts, `[N]`.
        gold: their labels, `[N]`.
        owner_N: place of the teacher that knows the gold label, `[N]`.
    """

    name: str
    teachers: dict[str, Path]
    labels: dict[str, list[str]]
    texts: list[str]
    gold: list[str]
    owner_N: NDArray[np.int64]


def teachers_of(name: str, cache: str | Path = CACHE, data: str | Path | None = None) -> Suite:
    """The suite of this name; its teachers are trained on the first call, and then found in `cache`.

    Args:
        name: one of `RECIPES`.
        data: folder with the data sets; default `$MUKI_DATA`; the demo needs none.

    Raises:
        SystemExit: unknown name, or the data is not there; one line.
    """
    if name not in RECIPES:
        sys.exit(f"error: no suite {name!r}; choose from {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    train, test, halves = _demo() if name == "demo" else _data_set(recipe, data)
    # named by the recipe and the rows: another recipe trains anew beside it
    content = [
        recipe.max_length,
        recipe.training.model_dump(),
        halves,
        train[["text", "label"]].to_numpy().tolist(),
    ]
    home = Path(cache).expanduser() / "teachers" / f"{name}-{fingerprint(content)[:10]}"
    folders = {half: home / half for half in halves}
    for half, labels in halves.items():
        if not (folders[half] / "config.json").is_file():
            _train(f"{name} {half}", train[train["label"].isin(labels)], labels, folders[half], recipe)
    owner = {label: place for place, labels in enumerate(halves.values()) for label in labels}
    gold = test["label"].tolist()
    return Suite(name, folders, halves, test["text"].tolist(), gold, np.array([owner[one] for one in gold]))


def _train(what: str, rows: pd.DataFrame, labels: list[str], target: Path, recipe: Recipe) -> None:
    # beside the target and by process: two benchmarks at once may both train, and the last one is kept
    scratch = target.with_name(f"{target.name}-{os.getpid()}")
    base = scratch / "base"
    base_model(base, recipe.max_length)
    train_with_labels(what, rows.reset_index(drop=True), labels, base, scratch / "teacher", recipe.training)
    shutil.rmtree(target, ignore_errors=True)
    (scratch / "teacher").rename(target)
    shutil.rmtree(scratch)


def _demo() -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    """The demo's split; its corpus, which no teacher saw, is test here: 300 rows tell too little."""
    frame = prepare_demo.articles()
    train = frame[: prepare_demo.TEACHER_ROWS]
    return train, frame[prepare_demo.TEACHER_ROWS :], dict(prepare_demo.TEACHERS)


def _data_set(
    recipe: Recipe, data: str | Path | None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, list[str]]]:
    given = data or os.environ.get("MUKI_DATA")
    if not given or not (Path(given) / recipe.folder / "train.parquet").is_file():
        sys.exit(
            f"error: no folder {recipe.folder} with train.parquet in {given!r}; give --data or set MUKI_DATA"
        )
    folder = Path(given) / recipe.folder
    train, test = (pd.read_parquet(folder / f"{split}.parquet") for split in ("train", "test"))
    groups = sorted(train[recipe.halves_of].unique())
    cut = len(groups) // 2
    halves = {
        name: sorted(train[train[recipe.halves_of].isin(own)]["label"].unique())
        for name, own in {"first": groups[:cut], "second": groups[cut:]}.items()
    }
    return _some(train, recipe.train_rows), _some(test, recipe.test_rows), halves


def _some(frame: pd.DataFrame, rows: int | None) -> pd.DataFrame:
    if rows is None or rows >= len(frame):
        return frame
    return frame.sample(n=rows, random_state=0).sort_index().reset_index(drop=True)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(RECIPES), help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--data", help="folder with the data sets; default $MUKI_DATA")
    parser.add_argument("--cache", default=CACHE)
    options = parser.parse_args()
    for name in options.names:
        suite = teachers_of(name, options.cache, options.data)
        print(
            f"{name}: {len(suite.texts)} test rows, teachers in {next(iter(suite.teachers.values())).parent}"
        )


if __name__ == "__main__":
    main()
