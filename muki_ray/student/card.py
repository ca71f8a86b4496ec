"""The student's model card: what it is, how it was made, how good it is, what it cannot do.

Text in, Markdown out. Knows the Hugging Face card format; loads no model and writes no file.
Local paths and credentials never reach the card: a card is made to be published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from muki_ray import filesystem as locations
from muki_ray.uncertainty import SAMPLED

TAGS = ["muki-ray", "knowledge-integration"]
# what the baselines do, by the method's kind
_KD = (
    "The target is the softmax over all teachers' logits side by side, placed in the union by label name. The student "
    "minimises the Kullback-Leibler divergence from the target to its own prediction."
)
_BASELINES = {
    "vanilla_kd": f"Vanilla knowledge distillation. {_KD}",
    "uhc": "Unifying heterogeneous classifiers (UHC). Within the labels of each teacher the student minimises the "
    "Kullback-Leibler divergence from that teacher's prediction to its own, renormalised over these labels.",
    "dfa": f"Direct feature amalgamation (DFA). {_KD} Besides, in every layer its features follow what an auto-encoder "
    "makes of the features of all teachers.",
    "cfl": f"Common feature learning (CFL). {_KD} Besides, its last layer and those of the teachers are mapped into one "
    "space, where their distributions are made alike.",
}
# metric in the report -> metric id of the Hugging Face leaderboards
_RESULTS = {"accuracy": "accuracy", "macro_f1": "f1"}


def model_card(
    labels: Sequence[str],
    teachers: Sequence[Mapping[str, Any]],
    base_model: str,
    method: Mapping[str, Any],
    training: Mapping[str, Any],
    corpus: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    grown: bool = False,
) -> str:
    """README.md of the student, YAML front matter first.

    Args:
        labels: the union, in the order of the logits.
        teachers: per teacher `name`, `model` (hub id, path or URI), `revision` (or None) and its `labels`
            under their names in the union.
        base_model: what the student was initialised from: hub id, path or URI.
        method: the resolved `method` section of the configuration.
        training: the resolved `training` section.
        corpus: `rows` and `fingerprint` of the unlabeled text.
        metrics: results on the labelled test set, nested or flat; `accuracy` and `macro_f1` at the top level
            also go into the front matter. None when there was no test set.
        grown: training started from an earlier student that was made from `base_model`.
    """
    results = _numbers(metrics or {})
    baseline = _BASELINES.get(str(method.get("kind")))
    hub_teachers = [str(teacher["model"]) for teacher in teachers if is_hub_id(str(teacher["model"]))]
    return (
        _template()
        .render(
            front_matter=_front_matter(
                hub_teachers, results, [*TAGS, "mc-dropout"] if _dropout_counts(method) else TAGS
            ),
            labels=labels,
            teachers=[_teacher(teacher) for teacher in teachers],
            base_model=base_model if is_hub_id(base_model) else None,
            grown=grown,
            method=method,
            baseline=baseline,
            settings=_settings(method),
            training=_settings(training),
            corpus=corpus,
            results=results,
        )
        .rstrip()
        + "\n"
    )


def _dropout_counts(method: Mapping[str, Any]) -> bool:
    """Whether Monte-Carlo samples had a say in the targets."""
    return bool(method.get("samples")) and (bool(method["cotraining"]) or method["score"] in SAMPLED)


def is_hub_id(model: str) -> bool:
    """Whether this names a model on the hub: the form of an id, and nothing of that name on this machine."""
    if locations.scheme(model) or Path(model).expanduser().exists():
        return False
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return True


def _front_matter(hub_teachers: list[str], results: Mapping[str, float], tags: list[str]) -> str:
    extra: dict[str, Any] = {"base_model_relation": "merge"} if hub_teachers else {}
    if "accuracy" in results:
        extra["model_name"] = "student"
        extra["eval_results"] = [
            EvalResult(
                task_type="text-classification",
                task_name="Text classification",
                dataset_type="custom",
                dataset_name="labelled test set over the union",
                metric_type=metric,
                metric_name=name,
                metric_value=results[name],
            )
            for name, metric in _RESULTS.items()
            if name in results
        ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=list(dict.fromkeys(hub_teachers)) or None,
        tags=tags,
        **extra,
    )
    return str(data.to_yaml()).strip()


def _teacher(teacher: Mapping[str, Any]) -> dict[str, Any]:
    model = str(teacher["model"])
    public = is_hub_id(model)
    return {
        "name": teacher["name"],
        "model": model if public else None,
        "revision": (teacher.get("revision") or None) if public else None,
        "labels": list(teacher["labels"]),
    }


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a nested mapping under dotted names; all else is left out of the card."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def _settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings under dotted names; what was not set, and every path, is left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _settings(value, f"{prefix}{key}.")
        elif value is not None and "/" not in str(value):
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _code(text: object) -> str:
    """Any text as a Markdown code span on one line, whatever it holds."""
    plain = " ".join(str(text).split())
    if "`" not in plain:
        return f"`{plain}`"
    fence = "`" * (max(len(run) for run in re.findall("`+", plain)) + 1)
    return f"{fence} {plain} {fence}"


def _cell(text: object) -> str:
    """The same, for a cell of a table."""
    return _code(text).replace("|", "\\|")


def _figure(value: float) -> str:
    """A metric: whole numbers with separators, others with four decimals."""
    return f"{value:,.0f}" if value == int(value) and abs(value) > 1 else f"{value:.4f}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("muki_ray", "templates"),
        undefined=jinja2.StrictUndefined,  # a missing value is a defect, not a gap in the text
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML; `code` and `cell` make foreign text harmless
    )
    environment.filters |= {"code": _code, "cell": _cell, "figure": _figure}
    return environment.get_template("model_card.md.j2")
