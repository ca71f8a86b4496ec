"""Monte-Carlo dropout: the released procedure against this engine, in alternating rounds of one process.

    python benchmarks/mc_dropout.py [--rows N] [--rounds R] [--model mpnet|DIR] [--device cuda] [--quick] [--json FILE]

Same rows (AG News), same weights, K = 16 but for `default`, which is what a user gets who sets nothing. Reference:
`reference.py` (padded to 128, K + 1 whole forwards). Rows are tokenized before the reference's clock starts, and
inside ours.

    exact    masks per sample in all layers, K = 16
    default  the product's default, whatever K it has: judged by the choice of teacher, below
    last 2, last 1   masks per sample in the last layers only, K = 16
    classical        a mask per element and forward, K = 16, on our batches

A ratio is reference time / our time, each the best of the rounds. Efficiency is the share of the machine's matrix
product limit (bfloat16, measured in the same run) that K + 1 whole forwards of the real tokens would need in the
time taken; `performed` counts only what the answer needs, since the last layer runs for the one token that is read.
Preparing a teacher (tracing and checking it, once per process) is reported apart.

Choice of teacher: AUROC on clinc150 with two teachers (`suites.py`), classical masks with K = 16 less the default's;
positive is worse. `--quick` trains on fewer rows and tests on fewer. It is left out, as null, where the data is not
there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

sys.path.insert(0, str(Path(__file__).parent))
import machine
import reference
import workload
from selection import CLASSICAL, CLASSICAL_K, fewer, selection_of
from suites import teachers_of

from muki_ray.config_method import DropoutConfig, MukiMethod
from muki_ray.teachers.loading import load_classifier
from muki_ray.teachers.scoring import Scorer
from muki_ray.teachers.spec import resolve_dtype

K = 16
ROWS, ROWS_QUICK, ROWS_CUDA = 192, 96, 4096
ROUNDS = 3
SELECTION_ROWS, SELECTION_ROWS_QUICK = 1500, 500
SEEDS, SEEDS_QUICK = 3, 1


def settings() -> dict[str, tuple[int, DropoutConfig]]:
    """What is timed: name -> (K, dropout)."""
    default = MukiMethod()
    return {
        "exact": (K, DropoutConfig(layers="all", rate=None)),
        "default": (default.samples, default.dropout),
        "last 2": (K, DropoutConfig(layers=2)),
        "last 1": (K, DropoutConfig(layers=1)),
        "classical": (K, DropoutConfig(masks="per_element", layers="all", rate=None)),
    }


def best(action: Callable[[], Any], device: torch.device, so_far: float) -> float:
    """Seconds of one run, or of a faster one before."""
    machine.synchronize(device)
    began = time.perf_counter()
    action()
    machine.synchronize(device)
    return min(so_far, time.perf_counter() - began)


def timed(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of the reference and of every setting, in alternating rounds."""
    rows = workload.texts(options.rows, options.data)
    folder = workload.classifier(workload.encoder(options.model), ["World", "Sports"])
    lengths = workload.token_lengths(folder, rows)
    config = AutoConfig.from_pretrained(folder)
    dtype = resolve_dtype("auto", on_gpu=device.type == "cuda")
    scorers, prepared = {}, {}
    for name, (samples, dropout) in settings().items():
        classifier = load_classifier(
            name, str(folder), max_length=workload.MAX_LENGTH, dtype=dtype, device=device.type
        )
        began = time.perf_counter()
        scorers[name] = Scorer(classifier, samples=samples, dropout=dropout, seed_key="benchmark")
        prepared[name] = time.perf_counter() - began
        scorers[name].score(rows[:8])  # warm
    model, tokenizer = reference.load(folder, device)
    inputs = reference.tokenized(tokenizer, rows)
    batch = reference.best_batch_size(model, inputs)
    seconds = dict.fromkeys(["reference", *scorers], float("inf"))
    for done in range(options.rounds):
        seconds["reference"] = best(
            lambda: reference.mc_dropout(model, inputs, K, batch), device, seconds["reference"]
        )
        for name, scorer in scorers.items():
            seconds[name] = best(lambda scorer=scorer: scorer.score(rows), device, seconds[name])  # type: ignore[misc]
        print(
            f"round {done + 1} of {options.rounds}: {seconds['reference']:.1f}s for the reference", flush=True
        )
    whole = machine.forward_flops(config, lengths)
    read = machine.forward_flops(config, lengths, read_tokens=1)
    return {
        "rows": len(rows),
        "tokens_per_row": sum(lengths) / len(rows),
        "reference_batch_size": batch,
        "dtype": dtype,
        "modes": {name: scorer.engine.mode for name, scorer in scorers.items()},
        "prepare_seconds": prepared,
        "seconds": seconds,
        "exact_flops": (K + 1) * whole,
        "exact_performed_flops": (K + 1) * read,
    }


def auroc_drop(options: argparse.Namespace) -> dict[str, Any] | None:
    """Classical AUROC less the default's; None where there is no data."""
    data = Path(options.data or "") / "clinc150"
    if not options.data or not data.is_dir():
        print(f"no {str(data)!r}: the choice of teacher is not measured")
        return None
    suite = teachers_of("clinc150-quick" if options.quick else "clinc150", data=options.data)
    suite = fewer(suite, SELECTION_ROWS_QUICK if options.quick else SELECTION_ROWS)
    seeds = SEEDS_QUICK if options.quick else SEEDS
    default = MukiMethod()
    classical = selection_of(suite, CLASSICAL.config, CLASSICAL_K, seeds)
    ours = selection_of(suite, lambda seed: replace_seed(default.dropout, seed), default.samples, seeds)
    return {"rows": len(suite.texts), "seeds": seeds, "classical": classical, "default": ours}


def replace_seed(dropout: DropoutConfig, seed: int) -> DropoutConfig:
    """The same setting under another seed."""
    return dropout.model_copy(update={"seed": seed})


def table(found: dict[str, Any], limit: float) -> str:
    """What a person reads."""
    seconds = found["seconds"]
    lines = [f"{'setting':<12}{'K':>4}{'seconds':>10}{'rows/s':>9}{'ratio':>8}"]
    lines.append(
        f"{'reference':<12}{K:>4}{seconds['reference']:>10.2f}{found['rows'] / seconds['reference']:>9.1f}{1:>8.1f}"
    )
    for name, (samples, _) in settings().items():
        ratio = seconds["reference"] / seconds[name]
        lines.append(
            f"{name:<12}{samples:>4}{seconds[name]:>10.2f}{found['rows'] / seconds[name]:>9.1f}{ratio:>8.1f}"
        )
    share = found["exact_flops"] / seconds["exact"] / limit
    performed = found["exact_performed_flops"] / seconds["exact"] / limit
    lines.append(
        f"limit {limit / 1e9:,.0f} GFLOP/s; exact: {share:.2f} of it, {performed:.2f} counting what is performed"
    )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.add_argument("--rows", type=int, help=f"default {ROWS}, quick {ROWS_QUICK}, GPU {ROWS_CUDA}")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick 1")
    parser.add_argument("--no-selection", action="store_true", help="leave out the choice of teacher")
    options = parser.parse_args()
    device = machine.device_of(options.device)
    machine.use_threads()
    workload.quiet()
    usual = ROWS_CUDA if device.type == "cuda" else ROWS
    options.rows = options.rows or (ROWS_QUICK if options.quick else usual)
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    limits = machine.limits(device, seconds=0.3 if options.quick else 0.7)
    found = timed(options, device)
    # the better of before and after: a limit that the run itself beats would be none
    limits["bfloat16_flops"] = max(
        limits["bfloat16_flops"], machine.matrix_limit(device, torch.bfloat16, 0.3)
    )
    print(table(found, limits["bfloat16_flops"]))
    selection = None if options.no_selection else auroc_drop(options)
    drop = None
    if selection is not None:
        drop = selection["classical"]["auroc"] - selection["default"]["auroc"]
        print(
            f"choice of teacher, {selection['rows']} rows: classical K={CLASSICAL_K} AUROC "
            f"{selection['classical']['auroc']:.4f}, default {selection['default']['auroc']:.4f}, drop {drop:+.4f}"
        )
    if options.json:
        seconds, limit = found["seconds"], limits["bfloat16_flops"]
        mc = {
            "exact_ratio": seconds["reference"] / seconds["exact"],
            "exact_efficiency": found["exact_flops"] / seconds["exact"] / limit,
            "exact_efficiency_performed": found["exact_performed_flops"] / seconds["exact"] / limit,
            "default_ratio": seconds["reference"] / seconds["default"],
            "default_auroc_drop": drop,
            "default_setting": MukiMethod().model_dump(mode="json", include={"samples", "dropout"}),
            "model": options.model or "MiniLM-L6",
            **found,
            "selection": selection,
        }
        Path(options.json).write_text(json.dumps({"mc": mc, "machine": limits}, indent=1) + "\n")


if __name__ == "__main__":
    main()
