"""Which Monte-Carlo setting is the cheapest whose choice of teacher is as good as classical dropout's.

    python benchmarks/selection.py [--suites NAME ...] [--layers 1 2 all] [--rates own 0.2 ...] [--samples 4 8 ...]
                                   [--seeds 3] [--bar-seeds 3] [--rows N] [--data DIR] [--cache DIR]
                                   [--json FILE] [--quick]

Two teachers, one of which knows the row: how well do their scores say which? Scores are `mc_entropy`, the measure is
the AUROC of `muki_ray.evaluation.selection_metrics`, on test rows with gold labels. The bar is classical Monte-Carlo
dropout (a new mask for every element, all layers, K=16, the model's own rates). A setting passes where the mean of
its AUROC over dropout seeds is at most 0.002 below the bar's on **every** set; the cheapest one that passes is
the choice, and of several rates that cost the same the safest: a run draws its masks once, so that is the one whose
worst drop is least with one standard deviation of a draw added.

With `--json FILE`, a table goes to FILE with the suffix .md too, and what FILE holds of other sets and settings is
kept and judged along, so a long grid can be measured in parts, and a setting that fails one set need not be
measured on the others: only one measured on every set can pass.

Costs are counted, not timed (`forwards`); `mc_dropout.py` times. Teachers and texts come from `suites.py`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from suites import CACHE, RECIPES, Suite, teachers_of

from muki_ray.config_method import DropoutConfig
from muki_ray.evaluation import selection_metrics
from muki_ray.teachers.evidence import EvidenceArrays
from muki_ray.teachers.loading import load_classifier
from muki_ray.teachers.scoring import Scorer
from muki_ray.teachers.spec import resolve_dtype
from muki_ray.uncertainty import TeacherEvidence, scores

SUITES = ["clinc150", "trec", "google_snippets", "ag_news", "demo"]
TOLERANCE = 0.002
DEPTH, TOKENS = 6, 32  # of the cost model: MiniLM's layers, a short text's tokens


@dataclass(frozen=True)
class Dropout:
    """How masks are drawn: all of a setting but K.

    Attributes:
        masks: `per_sample` or `per_element`.
        layers: stochastic ones, `all` or a number as text.
        rate: `own` or a number as text.
    """

    masks: str
    layers: str
    rate: str

    def config(self, seed: int) -> DropoutConfig:
        """As the product takes it."""
        layers = "all" if self.layers == "all" else int(self.layers)
        rate = None if self.rate == "own" else float(self.rate)
        return DropoutConfig(masks=self.masks, layers=layers, rate=rate, seed=seed)

    def forwards(self, samples: int) -> float:
        """What K samples cost in forwards of the whole model, the deterministic one counted.

        Of the last layer a sample needs keys and values of all tokens (2 of 12 parts of the layer's weights; none
        where no layer before it is stochastic), and the rest for the one token that the head reads.
        """
        if self.masks == "per_element":
            return samples + 1.0
        whole = (DEPTH if self.layers == "all" else int(self.layers)) - 1
        a_sample = whole + (1 / 6 if whole else 0.0) + (5 / 6) / TOKENS
        return 1 + samples * a_sample / DEPTH


CLASSICAL, CLASSICAL_K = Dropout("per_element", "all", "own"), 16


def selection_of(
    suite: Suite, dropout: Callable[[int], DropoutConfig], samples: int, seeds: int
) -> dict[str, Any]:
    """How well the teachers' scores say which of them knows a row.

    Args:
        dropout: the setting under a seed.
        samples: K.

    Returns:
        auroc, accuracy, energy_auroc (of mc_energy): means over the seeds; auroc_sd: their standard deviation (0 for
        one); draws: how many; entropy: the same of the deterministic pass.
    """
    classifiers = {
        name: load_classifier(name, str(folder), dtype=resolve_dtype("auto", on_gpu=False))
        for name, folder in suite.teachers.items()
    }
    draws = []
    for seed in range(seeds):
        evidence = [
            # a copy: classical dropout sets its model's rates
            Scorer(
                copy.deepcopy(one), samples=samples, dropout=dropout(seed), seed_key=f"{suite.name} {name}"
            ).score(suite.texts)
            for name, one in classifiers.items()
        ]
        draws.append(_selection(evidence, suite))
    entropy = scores("entropy", [TeacherEvidence(one.logits) for one in evidence])
    means = {key: float(np.mean([draw[key] for draw in draws])) for key in draws[0]}
    sd = float(np.std([draw["auroc"] for draw in draws], ddof=1)) if len(draws) > 1 else 0.0
    return {
        **means,
        "auroc_sd": sd,
        "draws": len(draws),
        "entropy": selection_metrics(entropy, suite.owner_N),
    }


def _selection(evidence: list[EvidenceArrays], suite: Suite) -> dict[str, float]:
    """Selection by the evidence of each teacher."""
    taken = [TeacherEvidence(one.logits, one.mc_probs) for one in evidence]
    energy = np.stack([np.asarray(one.mc_energy) for one in evidence], axis=1)
    by_entropy = selection_metrics(scores("mc_entropy", taken), suite.owner_N)
    by_energy = selection_metrics(energy, suite.owner_N)
    return {
        "auroc": by_entropy["auroc"],
        "accuracy": by_entropy["accuracy"],
        "energy_auroc": by_energy["auroc"],
    }


def fewer(suite: Suite, rows: int | None) -> Suite:
    """At most so many test rows, drawn with seed 0."""
    if rows is None or rows >= len(suite.texts):
        return suite
    chosen = np.sort(np.random.default_rng(0).permutation(len(suite.texts))[:rows])
    return replace(
        suite,
        texts=[suite.texts[i] for i in chosen],
        gold=[suite.gold[i] for i in chosen],
        owner_N=suite.owner_N[chosen],
    )


def judge(sets: dict[str, Any]) -> list[dict[str, Any]]:
    """Every setting that some set has, cheapest first; of equal cost the one with the least risk first.

    Returns:
        setting (its keys as measured), forwards, drop (mean, per set that has it, positive is worse than classical),
        worst of them, risk (the worst with one standard deviation of a draw added), passes (on every set).
    """
    judged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, found in sets.items():
        for row in found["settings"]:
            parts = {part: row[part] for part in ("masks", "layers", "rate", "samples", "forwards")}
            one = judged.setdefault(_key(row), {**parts, "drop": {}, "risk": -1.0})
            one["drop"][name] = found["classical"]["auroc"] - row["auroc"]
            one["risk"] = max(one["risk"], one["drop"][name] + row["auroc_sd"])
    for one in judged.values():
        one["worst"] = max(one["drop"].values())
        one["passes"] = len(one["drop"]) == len(sets) and one["worst"] <= TOLERANCE
    return sorted(judged.values(), key=lambda one: (round(one["forwards"], 3), one["risk"]))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["masks"], row["layers"], row["rate"], row["samples"]


def report(sets: dict[str, Any], judged: list[dict[str, Any]]) -> str:
    """Markdown: the sets, every setting's drop on each, and the choice."""
    names = list(sets)
    lines = [
        "# The default Monte-Carlo setting",
        "",
        "Two MiniLM-L6 teachers a set; which of them knows the row? AUROC of `mc_entropy`, mean over dropout seeds",
        f"(± standard deviation of one draw). The bar is classical dropout: per element, all layers, K={CLASSICAL_K}.",
        "`entropy` is the deterministic pass, K=0.",
        "",
        "| set | rows | entropy | classical (draws) | classical, accuracy | classical, mc_energy |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in sets.items():
        bar = found["classical"]
        spread = f" ± {bar['auroc_sd']:.4f}" if bar["draws"] > 1 else ""
        lines.append(
            f"| {name} | {found['rows']} | {found['entropy']['auroc']:.4f} | {bar['auroc']:.4f}{spread}"
            f" ({bar['draws']}) | {bar['accuracy']:.4f} | {bar['energy_auroc']:.4f} |"
        )
    lines += [
        "",
        "Drop of AUROC against classical, in thousandths (negative: better) ± standard deviation of one draw, masks per",
        f"sample; `cost` counts forwards of the whole model, classical K={CLASSICAL_K} being"
        f" {CLASSICAL.forwards(CLASSICAL_K):.0f}. Blank: not measured, as it failed elsewhere.",
        "`risk` is the worst drop with that deviation added: a run draws its masks once.",
        "",
        "| layers | rate | K | cost | " + " | ".join(names) + " | worst | risk | |",
        "|---" * (len(names) + 7) + "|",
    ]
    for one in judged:
        drops = " | ".join(_drop(found, one, name) for name, found in sets.items())
        lines.append(
            f"| {one['layers']} | {one['rate']} | {one['samples']} | {one['forwards']:.2f} | {drops} |"
            f" {1000 * one['worst']:+.1f} | {1000 * one['risk']:+.1f} | {'passes' if one['passes'] else ''} |"
        )
    return "\n".join([*lines, "", _verdict(sets, judged)]) + "\n"


def _drop(found: dict[str, Any], one: dict[str, Any], name: str) -> str:
    """A cell: drop and spread of one setting on one set."""
    row = next((row for row in found["settings"] if _key(row) == _key(one)), None)
    return f"{1000 * one['drop'][name]:+.1f} ± {1000 * row['auroc_sd']:.1f}" if row else ""


def _verdict(sets: dict[str, Any], judged: list[dict[str, Any]]) -> str:
    best = next((one for one in judged if one["passes"]), None)
    if best is None:
        return f"**No setting passes** (drop at most {TOLERANCE} on every set)."
    worst = max(best["drop"], key=lambda name: best["drop"][name])
    row = next(one for one in sets[worst]["settings"] if _key(one) == _key(best))
    bar = sets[worst]["classical"]
    error = (row["auroc_sd"] ** 2 / row["draws"] + bar["auroc_sd"] ** 2 / bar["draws"]) ** 0.5
    passing = sum(one["passes"] for one in judged)
    return (
        f"**Choice: layers {best['layers']}, rate {best['rate']}, K={best['samples']}**: the cheapest of the {passing}"
        f" settings (of {len(judged)} tried) whose AUROC is at most {TOLERANCE} below classical on each of the {len(sets)} sets;"
        f" of equal cost, the one with the least risk. Its worst drop, {best['worst']:+.4f}, is on {worst}"
        f" (standard error over dropout seeds {error:.4f})."
    )


def main() -> None:
    """Measure, judge, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suites",
        nargs="*",
        default=SUITES,
        metavar="NAME",
        help=f"of {', '.join(RECIPES)}; none: judge FILE again",
    )
    parser.add_argument(
        "--layers", nargs="*", default=["1", "2", "all"], help="stochastic: all, or the last so many"
    )
    parser.add_argument("--rates", nargs="*", default=["own", "0.2", "0.3"], help="own: the model's")
    parser.add_argument("--samples", nargs="*", type=int, default=[4, 8, 16], help="K")
    parser.add_argument("--seeds", type=int, default=3, help="dropout seeds of every setting")
    parser.add_argument("--bar-seeds", type=int, default=3, help="dropout seeds of classical dropout")
    parser.add_argument("--rows", type=int, help="at most so many test rows of each set, drawn with seed 0")
    parser.add_argument("--data", help="folder with the data sets; default $MUKI_DATA")
    parser.add_argument("--cache", default=CACHE, help="where teachers are kept")
    parser.add_argument("--json", help="write the results here, and a table beside it")
    parser.add_argument(
        "--quick", action="store_true", help="clinc150-quick, all layers, rate 0.2, K=4, 2 seeds"
    )
    options = parser.parse_args()
    if options.quick:
        options.suites, options.layers, options.rates = ["clinc150-quick"], ["all"], ["0.2"]
        options.samples, options.seeds, options.bar_seeds, options.rows = [4], 2, 1, options.rows or 500
    if any(K < 2 for K in options.samples):
        parser.error(f"--samples must be 2 or more, got {options.samples}")
    target = Path(options.json) if options.json else None
    sets: dict[str, Any] = json.loads(target.read_text())["sets"] if target and target.is_file() else {}
    for name in options.suites:
        suite = fewer(teachers_of(name, options.cache, options.data), options.rows)
        found = sets.setdefault(name, {"rows": len(suite.texts), "settings": []})
        if "classical" not in found:
            began = time.monotonic()
            bar = selection_of(suite, CLASSICAL.config, CLASSICAL_K, options.bar_seeds)
            found |= {"entropy": bar.pop("entropy"), "classical": bar}
            _say(
                f"{name}: classical AUROC {bar['auroc']:.4f}, entropy {found['entropy']['auroc']:.4f}", began
            )
        for layers in options.layers:
            for rate in options.rates:
                began, dropout = time.monotonic(), Dropout("per_sample", layers, rate)
                for K in options.samples:
                    row = selection_of(suite, dropout.config, K, options.seeds)
                    del row["entropy"]
                    new = {**vars(dropout), "samples": K, "forwards": dropout.forwards(K), **row}
                    found["settings"] = [*(one for one in found["settings"] if _key(one) != _key(new)), new]
                    _say(
                        f"{name}: layers {layers}, rate {rate}, K={K}: AUROC {row['auroc']:.4f} ± {row['auroc_sd']:.4f},"
                        f" drop {found['classical']['auroc'] - row['auroc']:+.4f}",
                        began,
                    )
        if target:
            _write(target, sets)
    if target:
        _write(target, sets)
    print(report(sets, judge(sets)))


def _write(target: Path, sets: dict[str, Any]) -> None:
    judged = judge(sets)
    choice = next((one for one in judged if one["passes"]), None)
    content = {"tolerance": TOLERANCE, "choice": choice, "sets": sets}
    target.write_text(json.dumps(content, indent=1) + "\n")
    target.with_suffix(".md").write_text(report(sets, judged))


def _say(line: str, began: float) -> None:
    print(f"{line} ({time.monotonic() - began:.0f}s)", flush=True)


if __name__ == "__main__":
    main()
