"""From two teachers and unlabeled text to a student: the released procedure against `muki_ray integrate`.

AG News, two MiniLM teachers of two labels each, trained on rows of their own (`suites.py`, cached). The corpus is
drawn from the training split, labels unread. Both procedures get the same rows, teachers, student weights,
integration (soft, tau 0.2, margin, raw weights), epochs, batch size, learning rate, schedule and seed, and in the
end both students are measured by the same code on the test split, outside the clock.

    python benchmarks/end_to_end.py [--rows N] [--seeds 0 1 2] [--quick] [--json FILE]

Reference (`reference.py`): loads the teachers; K + 1 padded forwards per teacher and row; three epochs with both
teachers' forwards inside every step. Its clock starts when everything is imported. Ours: the command as a user
types it, from the start of the process to its end: imports, Ray, MLflow, scoring, Ray Train, model card, report,
logged model. Ours is left at the package's defaults, so these differ: K = 4 balanced masks that all rows share in
place of K = 16 new ones per element (`results/selection.md` compares the choice of teacher); bfloat16 where the
hardware has it; 5 % of the rows held out to choose among the three checkpoints (the reference trains on all rows and
keeps the last).

`ratio` is the sum of the reference's seconds over the sum of ours, over all seeds. `--quick` shows that it works:
with few rows the start-up of ours is most of its time, and accuracies mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import reference
import suites
import torch
import workload
import yaml
from machine import describe, device_of, use_threads

from muki_ray.config import StudentConfig
from muki_ray.student.model import build_student, inspect_student

_COMMAND = Path(__file__).parents[1] / "jobs" / "integrate.py"


def run_reference(
    rows: pd.DataFrame, suite: suites.Suite, labels: list[str], base: Path, seed: int, options: Any
) -> tuple[Any, dict[str, float]]:
    """The released procedure: the student, and seconds of each part."""
    device = device_of(options.device)
    torch.manual_seed(seed)
    began = time.perf_counter()
    loaded = [reference.load(folder, device) for folder in suite.teachers.values()]
    inputs = reference.tokenized(loaded[0][1], rows["text"].tolist())
    batch_size = reference.best_batch_size(loaded[0][0], inputs)
    ready = time.perf_counter()
    scores = [reference.mc_dropout(model, inputs, options.samples, batch_size).scores for model, _ in loaded]
    scored = time.perf_counter()
    spec = inspect_student(StudentConfig(model=str(base)), reference.MAX_LENGTH)
    student, _ = build_student(spec, labels, seed, None)
    trainer = reference.StudentTrainer(
        student.to(device),
        [
            (model, [labels.index(label) for label in suite.labels[name]])
            for name, (model, _) in zip(suite.teachers, loaded, strict=True)
        ],
        len(labels),
        reference.steps(len(rows), options.epochs),
        reference.Method(learning_rate=options.learning_rate),
    )
    reference.train(trainer, inputs, torch.stack(scores, dim=1), options.epochs, seed)
    end = time.perf_counter()
    return student, {
        "load": ready - began,
        "score": scored - ready,
        "train": end - scored,
        "all": end - began,
    }


def run_ours(
    corpus: Path, suite: suites.Suite, base: Path, output: Path, seed: int, options: Any
) -> dict[str, Any]:
    """The command: its seconds, and what it said about its stages."""
    config = {
        "teachers": [{"name": n, "model": str(folder)} for n, folder in suite.teachers.items()],
        "corpus": {"path": str(corpus)},
        "student": {"model": str(base), "max_length": reference.MAX_LENGTH},
        "method": {"weights": "raw", "dropout": {"seed": seed}},
        "training": {
            "epochs": options.epochs,
            "batch_size": reference.STEP_ROWS,
            "learning_rate": options.learning_rate,
            "weight_decay": reference.Method.weight_decay,
            "patience": None,
            "seed": seed,
        },
        "output": str(output),
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    hidden = {} if device_of(options.device).type == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(_COMMAND), str(path), *options.overrides],
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"error: {_COMMAND.name} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return {"all": seconds, "stages": [line for line in done.stderr.splitlines() if " in " in line]}


def accuracy(model: Any, tokenizer: Any, suite: suites.Suite, labels: list[str]) -> float:
    """Share of the test rows that the model labels as they are labelled."""
    found = reference.predict(model, reference.tokenized(tokenizer, suite.texts))
    gold = torch.tensor([labels.index(label) for label in suite.gold])
    return float((found == gold).float().mean())


def one_seed(seed: int, suite: suites.Suite, base: Path, options: Any) -> dict[str, Any]:
    """Both procedures."""
    rows = workload.ag_news(options.data).sample(n=options.rows, random_state=1000 + seed)[["text"]]
    labels = sorted(label for own in suite.labels.values() for label in own)  # as the package joins them
    with tempfile.TemporaryDirectory() as scratch:
        corpus, output = Path(scratch) / "corpus.parquet", Path(scratch) / "run"
        rows.to_parquet(corpus, index=False)
        ours = run_ours(corpus, suite, base, output, seed, options)
        student, tokenizer = reference.load(output / "student", device_of(options.device))
        named = student.config.id2label
        assert [named[place] for place in range(len(labels))] == labels, "the accuracies go by label places"
        ours["accuracy"] = accuracy(student, tokenizer, suite, labels)
    print(f"seed {seed}: ours {ours['all']:.1f}s, accuracy {ours['accuracy']:.4f}", flush=True)
    use_threads()
    student, theirs = run_reference(rows, suite, labels, base, seed, options)
    theirs["accuracy"] = accuracy(student, tokenizer, suite, labels)
    print(
        f"seed {seed}: reference {theirs['all']:.1f}s (load {theirs['load']:.1f}, score {theirs['score']:.1f}, "
        f"train {theirs['train']:.1f}), accuracy {theirs['accuracy']:.4f}",
        flush=True,
    )
    return {"seed": seed, "ours": ours, "reference": theirs}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds say together."""

    def mean(side: str, name: str) -> float:
        return statistics.fmean(run[side][name] for run in runs)

    return {
        "ratio": mean("reference", "all") / mean("ours", "all"),
        "seconds": mean("ours", "all"),
        "reference_seconds": mean("reference", "all"),
        "accuracy": mean("ours", "accuracy"),
        "reference_accuracy": mean("reference", "accuracy"),
        "accuracy_gain_points": 100 * (mean("ours", "accuracy") - mean("reference", "accuracy")),
        "runs": runs,
    }


def main() -> None:
    """Measure, print, write after every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.add_argument("--rows", type=int, help="of the corpus; default 2000, quick 64")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=16, help="K of the reference")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("overrides", nargs="*", metavar="dotted.key=value", help="of our run's configuration")
    options = parser.parse_args()
    options.rows = options.rows or (64 if options.quick else 2000)
    if options.model:
        parser.error(f"--model {options.model}: the trained teachers are MiniLM; leave it out")
    workload.quiet()
    device = device_of(options.device)
    use_threads()
    suite = suites.teachers_of("ag_news-gentle", data=options.data)
    base = workload.encoder(None)
    runs = []
    for seed in options.seeds:
        runs.append(one_seed(seed, suite, base, options))
        found = summary(runs)
        settings = {name: getattr(options, name) for name in ("rows", "epochs", "samples", "learning_rate")}
        figures = {"e2e": {**found, **settings}, "machine": describe(device)}
        if options.json:
            Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"{options.rows} rows, {len(runs)} seed(s): reference {found['reference_seconds']:.0f}s, ours {found['seconds']:.0f}s, "
        f"ratio {found['ratio']:.1f}; accuracy {found['reference_accuracy']:.4f} and {found['accuracy']:.4f} "
        f"({found['accuracy_gain_points']:+.2f} points)"
    )


if __name__ == "__main__":
    main()
