"""Figures that a JSON file of an earlier run holds: what the same code measured the same way is not measured again.

Code is that of the package which decides a figure, and of this benchmark; versions of libraries are not looked at. A seed
of a suite is kept whole, all methods or none, so that methods are compared on the same teachers. Knows files; knows no
models.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from quality_cache import digest
from quality_methods import UPPER_BOUND, describe

import muki_ray

_PACKAGE = Path(muki_ray.__file__).parent
# what decides a figure; the rest of the package moves it about
_FOLDERS = ("student", "baselines", "teachers")
_MODULES = (
    "assess", "calibration", "cotraining*", "embedding*", "evaluation", "hashing", "integration", "labels", "learned", "ownership", "scripts",
    "standardisation", "supervision", "text_view", "uncertainty",
)  # fmt: skip

# what of this benchmark decides none
_SHOWN = ("quality_kept.py", "quality_page.py", "quality_plots.py", "quality_report.py")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """Suites of an earlier run by the same code, empty where there are none."""

    suites: Mapping[str, Figures]

    def seed(
        self, suite: str, facts: Mapping[str, Any], seed: int, methods: Sequence[str]
    ) -> tuple[Figures, dict[str, Figures]] | None:
        """What was found of the teachers, and each method's figures; None where anything is missing or of other rows."""
        found = self.suites.get(suite)
        if found is None or any(found.get(name) != value for name, value in facts.items() if name != "seeds"):
            return None
        runs = {name: one["runs"] for name, one in found["methods"].items()}
        if UPPER_BOUND in found:
            runs[UPPER_BOUND] = found[UPPER_BOUND]["runs"]
        of_seed = {name: runs[name][seed] for name in methods if seed < len(runs.get(name, ()))}
        if len(of_seed) < len(methods) or seed >= len(found["teacher_runs"]):
            return None
        return found["teacher_runs"][seed], of_seed


def read(path: str | None, scale: str) -> Kept:
    """What the file holds, if it was measured at this scale by today's code and settings."""
    if path is None or not Path(path).is_file():
        return Kept({})
    content = json.loads(Path(path).read_text())
    if content.get("code") != code() or any(
        describe(name) != settings for name, settings in content["settings"].items()
    ):
        return Kept({})
    suites = content["suites"] if "suites" in content else {content["suite"]: content}
    return Kept({name: one for name, one in suites.items() if one["scale"] == scale})


@cache
def code() -> str:
    """Digest of the code that figures depend on; comments and docstrings are not code."""
    files = [path for folder in _FOLDERS for path in sorted((_PACKAGE / folder).glob("*.py"))]
    files += [path for module in _MODULES for path in sorted(_PACKAGE.glob(f"{module}.py"))]
    here = sorted(Path(__file__).parent.glob("quality_*.py"))
    files += [path for path in here if path.name not in _SHOWN]
    return digest(part for path in files for part in (path.name, bare(path.read_text())))


def bare(source: str) -> str:
    """A module without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[:1] = [] if len(body) > 1 else [ast.Pass()]
    return ast.dump(tree)
