"""The report of a run: one HTML file that needs no other, the numbers as JSON, the pictures as PNG.

Knows the run folder and Jinja2; knows no Ray, no models. Text from corpora and configurations is escaped,
and the page may load nothing and run nothing, whatever that text holds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from muki_ray.report.table import HEADER, result_rows
from muki_ray.statistics import CorpusStatistics
from muki_ray.store import Folder
from muki_ray.uris import redact_all

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHARACTERS = 600
# control characters, surrogates, and marks that turn the direction of all text after them
_DISTURBING = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CAPTIONS = {
    "accuracy": "Accuracy on the test set. A diamond: a teacher, on the rows whose label it knows.",
    "rows_won": "Share of corpus rows on which each teacher has the best score.",
    "scores": "How each teacher's scores spread over the corpus.",
    "scores_by_owner": "Scores on the test set: rows whose label only this teacher knows, and others' rows.",
    "margins": "Gap between the two best scores; small where two teachers look alike.",
    "confusion": "Gold labels against the student's predictions. Colour is logarithmic, white holds no row.",
}


@dataclass(frozen=True)
class Example:
    """One row to show: its text, what the student says, and how sure it is; None where unknown."""

    text: str
    predicted: str
    confidence: float
    gold: str | None = None
    teacher: str | None = None


def write_report(
    folder: Folder,
    metrics: Mapping[str, Any],
    statistics: CorpusStatistics | None,
    pictures: Mapping[str, bytes],
    *,
    title: str,
    labels: Sequence[str],
    teachers: Sequence[str] = (),
    top_confusions: Sequence[Mapping[str, Any]] = (),
    examples: Sequence[Example] = (),
    settings: Mapping[str, Any] | None = None,
    set_aside: Sequence[str] = (),
) -> None:
    """Write `metrics.json`, `statistics.json`, `<picture>.png` and, last, `report.html`.

    Args:
        folder: where to; files there are replaced.
        metrics: as `evaluate_run` returns them; further entries are written to `metrics.json` as they are.
        statistics: over the corpus; None writes no `statistics.json`.
        pictures: name -> PNG. The names that `draw` gives have captions.
        title: heading of the page.
        labels: the union.
        teachers: their names, in the order of `statistics`.
        top_confusions: as `muki_ray.evaluation.top_confusions` returns them.
        examples: rows to show.
        settings: the resolved configuration; shown without credentials.
        set_aside: which rows were left out, why, and where they are listed: a line each.

    Raises:
        ValueError: a picture that is no PNG or has a name that is no file name, names of teachers that do
            not fit the statistics, or metrics that JSON cannot hold.
    """
    for name, png in pictures.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not png.startswith(_PNG):
            raise ValueError(f"picture {name!r} is no PNG, or its name is no plain file name")
    if statistics is not None and len(teachers) != statistics.teachers:
        raise ValueError(f"{len(teachers)} names of teachers for statistics of {statistics.teachers}")
    page = _environment().get_template("report.html.j2").render(
        title=title,
        header=HEADER,
        results=[row.cells() for row in result_rows(metrics)],
        selection=metrics.get("selection") or {},
        rows_tested=metrics.get("rows_tested"),
        rows_outside=metrics.get("rows_outside_union"),
        corpus=_corpus(statistics, teachers),
        set_aside=set_aside,
        pictures=[(name, _CAPTIONS.get(name, name), _inline(png)) for name, png in pictures.items()],
        labels=labels,
        top_confusions=top_confusions,
        examples=examples,
        settings=_yaml(settings) if settings else "",
    )  # fmt: skip
    folder.write_json("metrics.json", dict(metrics))
    if statistics is not None:
        folder.write_json("statistics.json", statistics.to_json())
    for name, png in pictures.items():
        folder.write_bytes(f"{name}.png", png)
    folder.write_bytes("report.html", page.encode("utf-8", "replace"))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("muki_ray"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["excerpt"] = excerpt
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.4f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment


def excerpt(text: str, most: int = _TEXT_CHARACTERS) -> str:
    """The beginning of a text, without characters that could disturb the rest of the page."""
    clean = "".join(c for c in text if c in "\n\t" or not _DISTURBING.match(c))
    return clean if len(clean) <= most else clean[:most].rstrip() + " …"


def _corpus(statistics: CorpusStatistics | None, teachers: Sequence[str]) -> dict[str, Any] | None:
    if statistics is None or not statistics.rows:
        return None
    means = (statistics.score_sum_M / statistics.rows).tolist()
    shares = (100 * statistics.won_M / statistics.rows).tolist()
    return {
        "rows": statistics.rows,
        "margin_mean": statistics.margin_mean,
        "teachers": list(zip(teachers, means, shares, strict=True)),
    }


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(redact_all(settings), sort_keys=False, allow_unicode=True)
