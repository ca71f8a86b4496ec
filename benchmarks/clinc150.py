"""Two MiniLM teachers on clinc150, end to end: 150 intents in 10 domains, 5 domains a teacher.

Fine-tunes the teachers (each on its own intents of the training split), merges them with the training texts as
unlabeled corpus, and measures on the test split.

    python benchmarks/clinc150.py --output runs/clinc150 [--data DIR] [--layers all|N] [--upper-bound] [--json FILE] [dotted.key=value ...]

The data is the folder `clinc150` (train.parquet, test.parquet: text, label, domain) in `--data`, by default
`$MUKI_DATA`. The base model comes from the demo extra.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from prepare_demo import base_model, train_with_labels

from muki_ray import integrate
from muki_ray.config import TrainingConfig, parse_config

# 3 epochs at 2e-4: 64 tokens hold every utterance
RECIPE = TrainingConfig(epochs=3, batch_size=32, learning_rate=2e-4, patience=None)
MAX_LENGTH = 64


def main() -> None:
    """Prepare what is missing, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", default=os.environ.get("MUKI_DATA"), help="folder with clinc150/; default $MUKI_DATA"
    )
    parser.add_argument("--output", default="runs/clinc150")
    parser.add_argument("--layers", default="all", help="stochastic layers: all, or the last so many")
    parser.add_argument("--upper-bound", action="store_true", help="also train the student with all labels")
    parser.add_argument("--json", help="also write metrics and times to this file")
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value")
    options = parser.parse_args()
    if not options.data or not (Path(options.data) / "clinc150").is_dir():
        parser.error(f"no folder clinc150 in {options.data!r}; give --data or set MUKI_DATA")
    torch.set_num_threads(os.cpu_count() or 1)
    data, output = Path(options.data) / "clinc150", Path(options.output).absolute()
    train = pd.read_parquet(data / "train.parquet")
    domains = sorted(train["domain"].unique())
    halves = {"first": domains[: len(domains) // 2], "second": domains[len(domains) // 2 :]}
    seconds: dict[str, float] = {}

    models = output / "models"
    if not (models / "base" / "config.json").is_file():
        base_model(models / "base", MAX_LENGTH)
    jobs = {name: train[train["domain"].isin(own)].reset_index(drop=True) for name, own in halves.items()}
    compare: dict[str, str] = {}
    if options.upper_bound:
        jobs["upper-bound"] = train
        compare["upper_bound"] = str(models / "upper-bound")
    for name, frame in jobs.items():
        if not (models / name / "config.json").is_file():
            began = time.monotonic()
            train_with_labels(
                name, frame, sorted(frame["label"].unique()), models / "base", models / name, RECIPE
            )
            seconds[f"train {name}"] = time.monotonic() - began

    config = parse_config(
        {
            "teachers": [{"name": name, "model": str(models / name)} for name in halves],
            "corpus": {
                "path": str(data / "train.parquet"),
                "shard_rows": 512,
                "test": {"path": str(data / "test.parquet"), "compare": compare},
            },
            "student": {"model": str(models / "base")},
            "method": {
                "dropout": {"layers": options.layers if options.layers == "all" else int(options.layers)}
            },
            "training": RECIPE.model_dump(),
            "output": str(output),
        },
        options.overrides,
    )
    began = time.monotonic()
    result = integrate(config)
    seconds["integrate"] = time.monotonic() - began
    print(result.summary)
    print("\n".join(f"{name}: {value:.0f}s" for name, value in seconds.items()))
    if options.json:
        Path(options.json).write_text(json.dumps({**result.metrics, "seconds": seconds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
