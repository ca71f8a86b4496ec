"""What a run costs against K, text length, stochastic layers, teachers and rows: a plot and a fitted line each.

    python benchmarks/costs.py [--rows N] [--device cuda] [--quick] [--json FILE] [--plots FOLDER]

AG News texts, MiniLM-L6 classifiers, masks per sample; one setting varies, the others stay as they are in `BASE`.
Times are the best of several runs and count tokenizing. A line `a + b x` is fitted to each by least squares; R2 says
how straight it is. For lengths the texts are long ones, cut.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parent))
import machine
import workload

from muki_ray.config_method import DropoutConfig
from muki_ray.teachers.loading import load_classifier
from muki_ray.teachers.scoring import Scorer
from muki_ray.teachers.spec import resolve_dtype

mpl.use("Agg")

BASE: dict[str, Any] = {"K": 16, "length": 64, "layers": "all", "teachers": 1, "rows": 128}
VALUES: dict[str, list[Any]] = {
    "K": [0, 2, 4, 8, 16, 32],
    "length": [16, 32, 64, 96, 128],
    "layers": [1, 2, 3, 4, 5, 6],
    "teachers": [1, 2, 3, 4],
    "rows": [64, 128, 256, 512],
}
UNITS = {
    "K": "samples", "length": "tokens a row", "layers": "stochastic layers", "teachers": "teachers", "rows": "rows",
}  # fmt: skip


class Bench:
    """Scorers on demand: one per teacher and setting."""

    def __init__(self, options: argparse.Namespace, device: str) -> None:
        self.device, self.runs = device, options.runs
        self.folder = workload.classifier(workload.encoder(options.model), ["World", "Sports"])
        frame = workload.ag_news(options.data)["text"]
        self.long = frame[frame.str.len() > 450].head(4096).tolist()  # 128 tokens at least

    def seconds(self, setting: dict[str, Any]) -> float:
        """Best of several runs."""
        scorers = []
        for teacher in range(setting["teachers"]):
            classifier = load_classifier(
                f"t{teacher}", str(self.folder), max_length=setting["length"],
                dtype=resolve_dtype("auto", on_gpu=self.device != "cpu"), device=self.device,
            )  # fmt: skip
            dropout = DropoutConfig(layers=setting["layers"])
            scorers.append(Scorer(classifier, samples=setting["K"], dropout=dropout, seed_key=str(teacher)))
        rows = self.long[: setting["rows"]]
        best = float("inf")
        for _ in range(self.runs):
            began = time.perf_counter()
            for scorer in scorers:
                scorer.score(rows)
            best = min(best, time.perf_counter() - began)
        return best


def fitted(x: list[float], y: list[float]) -> dict[str, float]:
    """Least squares line."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.array(y) - (intercept + slope * np.array(x))
    total = np.array(y) - np.mean(y)
    return {"a": float(intercept), "b": float(slope), "r2": float(1 - (rest @ rest) / (total @ total))}


def sweep(
    name: str, values: list[Any], base: dict[str, Any], seconds: Callable[[dict[str, Any]], float]
) -> dict[str, Any]:
    """One setting varied."""
    found = [seconds({**base, name: value}) for value in values]
    line = fitted([float(v) for v in values], found)
    return {"values": values, "seconds": found, **line}


def draw(name: str, found: dict[str, Any], base: dict[str, Any], folder: Path) -> None:
    """A picture of one sweep."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    x = np.array(found["values"], dtype=float)
    axes.plot(x, found["seconds"], "o", color="#2a6f97")
    axes.plot(x, found["a"] + found["b"] * x, "-", color="#c1121f", linewidth=1)
    others = ", ".join(f"{key} {value}" for key, value in base.items() if key != name)
    axes.set(xlabel=UNITS[name], ylabel="seconds", ylim=(0, None))
    axes.set_title(f"{found['a']:.3g} + {found['b']:.3g} x,  R² {found['r2']:.3f}\n{others}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"costs-{name}.png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    workload.add_arguments(parser)
    parser.add_argument(
        "--rows", type=int, help=f"rows where they do not vary; default {BASE['rows']}, quick 32"
    )
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--plots", help="folder for the pictures")
    options = parser.parse_args()
    device = machine.device_of(options.device)
    machine.use_threads()
    workload.quiet()
    base = {**BASE, "rows": options.rows or (32 if options.quick else BASE["rows"])}
    bench = Bench(options, device.type)
    results = {}
    for name, values in VALUES.items():
        chosen = [v * base["rows"] // BASE["rows"] for v in values] if name == "rows" else values
        found = results[name] = sweep(name, chosen, base, bench.seconds)
        print(f"{UNITS[name]:<18} {found['a']:.3g} + {found['b']:.3g} x  R2 {found['r2']:.3f}", flush=True)
        if options.plots:
            Path(options.plots).mkdir(parents=True, exist_ok=True)
            draw(name, found, base, Path(options.plots))
    if options.json:
        content = {"costs": results, "base": base, "machine": machine.describe(device)}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
