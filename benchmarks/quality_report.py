"""From the figures of each seed to means, spreads, tables and the JSON of a run.

Pure: dicts in, dicts and text out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from quality_methods import UPPER_BOUND

Figures = Mapping[str, Any]
_COLUMNS = (
    # title, key, as a percentage
    ("accuracy", "accuracy", False),
    ("of bound", "of_bound", True),
    ("macro-F1", "macro_f1", False),
    ("ECE", "ece", False),
    ("selection", "selection_accuracy", False),
    ("AUROC", "auroc", False),
    ("on corpus", "corpus_selection_accuracy", False),
    ("targets", "target_accuracy", False),
    ("calibrated", "tempered_ece", False),
    ("outside AUROC", "outside_auroc", False),
    ("at 95 %", "accuracy_at_95", False),
    ("scoring s", "scoring_seconds", None),
    ("training s", "seconds", None),
)
# share of rows for which the wrong teacher is chosen, on the test and on the corpus
_CHOICES = {
    "selection_error": "selection_accuracy",
    "corpus_selection_error": "corpus_selection_accuracy",
}
# expected calibration error before and after the product's temperature
_SURENESS = ("ece", "tempered_ece")


def over_seeds(runs: Sequence[Figures]) -> dict[str, Any]:
    """Mean of every number over the runs, `<name>_sd` beside each where there are several, and the `runs` themselves.

    A number that some run does not have (None) has no mean. Dicts of numbers are treated alike, without `runs`.
    """
    return _averaged(runs) | {"runs": [dict(run) for run in runs]}


def _averaged(runs: Sequence[Figures]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, first in runs[0].items():
        values = [run[key] for run in runs]
        if isinstance(first, Mapping):
            found[key] = _averaged(values)
        elif any(value is None for value in values):
            found[key] = None
        elif isinstance(first, (int, float)):
            found[key] = fmean(values)
            if len(values) > 1:
                found[f"{key}_sd"] = stdev(values)
    return found


def of_suite(
    facts: Figures, teachers: Sequence[Figures], runs: Mapping[str, Sequence[Figures]]
) -> dict[str, Any]:
    """The JSON of one suite.

    Args:
        facts: what is the same for all seeds.
        teachers: what `of_teachers` found, per seed.
        runs: method -> its figures, per seed.

    Returns:
        facts, what is known of the teachers (`teacher_runs`: per seed), `upper_bound` and `methods`, each as `over_seeds` gives it, with
        `of_bound` (mean over seeds of accuracy / upper bound's accuracy) and `of_bound_sd`.
    """
    bounds = [run.get("accuracy") for run in runs.get(UPPER_BOUND, ())]
    methods = {}
    for name, of_method in runs.items():
        methods[name] = over_seeds(of_method)
        pairs = [(run.get("accuracy"), bound) for run, bound in zip(of_method, bounds, strict=False)]
        if pairs and all(own is not None and bound for own, bound in pairs):
            shares = [{"of_bound": own / bound} for own, bound in pairs]
            methods[name] |= _averaged(shares)
    known = _averaged(teachers)
    bound = {UPPER_BOUND: methods.pop(UPPER_BOUND)} if UPPER_BOUND in methods else {}
    return {**facts, **known, **bound, "teacher_runs": [dict(one) for one in teachers], "methods": methods}


def summary(suites: Mapping[str, Figures]) -> dict[str, Any]:
    """Per method, over the suites that have it: means of accuracy / upper bound, selection error and ECE; how many suites.

    A mean over other suites than another method's is no comparison: look at `suites`.
    """
    names = list(dict.fromkeys(name for suite in suites.values() for name in suite["methods"]))
    found = {}
    for name in names:
        have = [suite["methods"][name] for suite in suites.values() if name in suite["methods"]]
        of_bound = [one["of_bound"] for one in have if one.get("of_bound") is not None]
        errors = {
            key: [1 - one[accuracy] for one in have if one.get(accuracy) is not None]
            for key, accuracy in _CHOICES.items()
        }
        sureness = {key: [one[key] for one in have if one.get(key) is not None] for key in _SURENESS}
        found[name] = {
            "suites": len(have),
            "of_bound": fmean(of_bound) if of_bound else None,
            "worst_of_bound": min(of_bound) if of_bound else None,
            **{key: fmean(values) if values else None for key, values in (errors | sureness).items()},
        }
    return found


def suite_table(name: str, suite: Figures) -> str:
    """Markdown: what the suite is, then a line per method."""
    own = ", ".join(f"{teacher} {_number(one['own_accuracy'])}" for teacher, one in suite["teachers"].items())
    bound = {UPPER_BOUND: suite[UPPER_BOUND]} if UPPER_BOUND in suite else {}
    rows = bound | suite["methods"]
    shown = [column for column in _COLUMNS if any(one.get(column[1]) is not None for one in rows.values())]
    others = list(suite["tests"])[1:]
    lines = [
        f"### {name}",
        "",
        f"{suite['about']}. Scale {suite['scale']}, {suite['seeds']} seed(s); {suite['labels']} labels, "
        f"{suite['corpus_rows']} corpus rows, {' + '.join(map(str, suite['tests'].values()))} test rows. "
        f"Teachers on their own labels: {own}; always choosing right: {_number(suite['oracle'])}.",
        "",
        "| method | " + " | ".join([*(title for title, *_ in shown), *others]) + " |",
        "|---" * (1 + len(shown) + len(others)) + "|",
    ]
    for method, one in rows.items():
        cells = [_cell(one, key, percent) for _, key, percent in shown]
        cells += [_cell(one.get("tests", {}), test, False) for test in others]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def summary_table(found: Mapping[str, Figures]) -> str:
    """Markdown: a line per method over all suites."""
    lines = [
        "### All suites",
        "",
        "| method | suites | accuracy / upper bound | worst suite | selection error | on the corpus | ECE | calibrated |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        cells = [_number(one[key], percent=True) for key in ("of_bound", "worst_of_bound", *_CHOICES)]
        cells += [_number(one[key]) for key in _SURENESS]
        lines.append(f"| {name} | {one['suites']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def score_table(name: str, found: Mapping[str, Figures]) -> str:
    """Markdown: every score under every standardisation, the best choice first."""
    lines = [f"### {name}: scores", "", "| score | selection | AUROC |", "|---|---|---|"]
    order = sorted(found, key=lambda one: -(found[one]["accuracy"] or 0.0))
    lines += [
        f"| {one} | {_cell(found[one], 'accuracy', False)} | {_cell(found[one], 'auroc', False)} |"
        for one in order
    ]
    return "\n".join(lines) + "\n"


def _cell(one: Figures, key: str, percent: bool | None) -> str:
    """Mean and spread; seconds (percent None) without."""
    value, spread = one.get(key), one.get(f"{key}_sd")
    if percent is None:
        return "" if value is None else f"{value:.1f}"
    text = _number(value, percent)
    return text if spread is None or not text else f"{text} ± {_number(spread, percent).removesuffix(' %')}"


def _number(value: float | None, percent: bool = False) -> str:
    if value is None or math.isnan(value):
        return ""
    return f"{100 * value:.1f} %" if percent else f"{value:.4f}"


def merged(runs: Iterable[Mapping[str, Figures]]) -> dict[str, Any]:
    """Means over seeds of dicts of figures, without the runs."""
    return _averaged(list(runs))
