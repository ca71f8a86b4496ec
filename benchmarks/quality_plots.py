"""The pictures of the quality benchmark: figures in, PNG files out.

Shapes: S suites, A columns (methods or scores).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from muki_ray.report import style

_SCORES_SHOWN = 24


def draw(suites: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the pictures that the figures allow; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "relative_accuracy.png": _relative(suites),
        "selection_error.png": _selection(suites),
    }
    written = []
    for name, png in wanted.items():
        if png is not None:
            (folder / name).write_bytes(png)
            written.append(folder / name)
    return written


def _relative(suites: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Accuracy relative to the upper bound, per suite and method."""
    methods = list(dict.fromkeys(name for suite in suites.values() for name in suite["methods"]))
    values_SA = _matrix(
        [[suite["methods"].get(name, {}).get("of_bound") for name in methods] for suite in suites.values()]
    )
    if np.isnan(values_SA).all():
        return None
    return _picture(
        values_SA,
        list(suites),
        methods,
        "Accuracy, % of the student trained with gold labels",
        best=np.nanmax,
    )


def _selection(suites: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Share of test rows on which the best score is not the owner's, per suite and score."""
    scores = list(dict.fromkeys(name for suite in suites.values() for name in suite.get("scores", {})))
    rows = [
        [suite.get("scores", {}).get(name, {}).get("accuracy") for name in scores]
        for suite in suites.values()
    ]
    values_SA = 1 - _matrix(rows)
    if not scores or np.isnan(values_SA).all():
        return None
    order = np.argsort(np.nanmean(values_SA, axis=0))[:_SCORES_SHOWN]
    title = "Wrong teacher chosen, % of test rows (scores in the order of their mean)"
    return _picture(values_SA[:, order], list(suites), [scores[i] for i in order], title, best=np.nanmin)


def _matrix(rows: list[list[float | None]]) -> NDArray[np.float64]:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _picture(
    values_SA: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], title: str, best: Any
) -> bytes:
    """A table whose cells are coloured; the best of each row in bold, and the mean of each column below."""
    mean_A = np.nanmean(values_SA, axis=0)
    shown = 100 * np.vstack([values_SA, mean_A])
    names = [*rows, "mean"]
    figure = style.new_figure(3.0 + 0.55 * len(columns), 2.2 + 0.3 * len(names))
    axes = figure.subplots()
    low, high = np.nanpercentile(shown, 5), np.nanmax(shown)
    look = Normalize(low, high)
    colours = colormaps["cividis" if best is np.nanmax else "cividis_r"]  # bright is good
    axes.imshow(shown, cmap=colours, norm=look, aspect="auto", interpolation="nearest")
    for (i, j), value in np.ndenumerate(shown):
        if not np.isnan(value):
            dark = np.mean(colours(look(value))[:3]) < 0.5
            weight = "bold" if value == best(shown[i]) else "normal"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, weight=weight,
                      color="white" if dark else style.INK)  # fmt: skip
    axes.set_xticks(range(len(columns)), labels=[style.short(name, 34) for name in columns], rotation=60, ha="right",
                    rotation_mode="anchor", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), labels=[style.short(name) for name in names], fontsize=8)
    axes.axhline(len(rows) - 0.5, color="white", linewidth=2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10)
    return style.to_png(figure)
