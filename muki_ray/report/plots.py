"""The pictures of a report: small inputs (counts, metrics) in, PNG bytes out.

Knows Matplotlib; knows no files, no Ray, no models. What was counted over a corpus arrives as histograms
(`muki_ray.statistics`), so a picture costs the same for a hundred rows and for billions.

Shapes: M teachers, B bins over [0, 1], C union labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from muki_ray.report import style
from muki_ray.report.table import ResultRow, result_rows
from muki_ray.statistics import EDGES

Counts = NDArray[np.int64]

# above it, one small picture per teacher becomes one line per teacher in a heat map
PANELS = 9
# above it, the remaining bars are only counted, and lines of a heat map lose their names
BARS = 60
# above it, a confusion matrix has no names at its axes
NAMED_LABELS = 40
# up to it, a confusion matrix has its counts written into it
WRITTEN_LABELS = 12


def score_distributions(teachers: Sequence[str], scores_MB: Counts) -> bytes:
    """How each teacher's scores spread over the corpus."""
    groups = [("all rows", style.BLUE, scores_MB)]
    return _distributions(teachers, groups, "Scores over the corpus, by teacher")


def owner_score_distributions(teachers: Sequence[str], right_MB: Counts, wrong_MB: Counts) -> bytes:
    """Each teacher's scores on the test rows it should win, and on those that another should win.

    The two groups are shares of themselves: with many teachers the second is far larger.
    """
    groups = [("rows it knows", style.BLUE, right_MB), ("rows another knows", style.ORANGE, wrong_MB)]
    return _distributions(teachers, groups, "Scores over the test set, by who knows the label")


def margin_histogram(margin_B: Counts, mean: float | None = None) -> bytes:
    """How far apart the two best scores are, over the corpus."""
    figure = style.new_figure(6.4, 3.4)
    axes = style.plain(figure.subplots(), grid="y")
    axes.stairs(_percent(margin_B), EDGES, fill=True, color=style.BLUE)
    if mean is not None:
        axes.axvline(mean, color=style.INK, linestyle="--", linewidth=1.2, label=f"mean {mean:.3f}")
        axes.legend(frameon=False, fontsize=9)
    axes.set(xlim=(0, 1), xlabel="margin: best score minus second best", ylabel="share of rows (%)")
    axes.set_title("Margins over the corpus", fontsize=11)
    return style.to_png(figure)


def rows_won(teachers: Sequence[str], won_M: Counts) -> bytes:
    """Share of corpus rows on which each teacher has the best score, largest first."""
    _check(teachers, won_M)
    share_M = _percent(won_M)
    order = np.argsort(-share_M, kind="stable")
    values = share_M[order[:BARS]].tolist()
    figure, axes = _bars([style.short(teachers[m]) for m in order[:BARS]])
    drawn = axes.barh(range(len(values)), values, color=style.BLUE, height=0.7)
    axes.bar_label(drawn, labels=[f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.set(xlim=(0, max(max(values) * 1.12, 1.0)), xlabel="share of corpus rows (%)")
    rest = order[BARS:]
    more = f" ({len(rest)} more teachers won {share_M[rest].sum():.2f}%)" if len(rest) else ""
    axes.set_title(f"Rows won: who has the best score{more}", fontsize=11)
    return style.to_png(figure)


def confusion_picture(matrix_CC: Counts, labels: Sequence[str]) -> bytes:
    """Gold against predicted labels. Colour is logarithmic; white cells hold no row."""
    size = len(labels)
    if matrix_CC.shape != (size, size):
        raise ValueError(f"a confusion matrix {matrix_CC.shape} does not fit {size} labels")
    side = 3.2 + 0.42 * size if size <= WRITTEN_LABELS else min(4.0 + 0.16 * size, 9.0)
    figure = style.new_figure(side + 0.8, side, square=True)
    axes = figure.subplots()
    most = max(int(matrix_CC.max()), 2)
    # no smoothing: a cell is a count
    look: dict[str, Any] = {"cmap": style.SEQUENTIAL_FROM_ONE, "interpolation": "nearest"}
    image = axes.imshow(np.ma.masked_equal(matrix_CC, 0), norm=LogNorm(1, most), **look)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, fraction=0.05, aspect=30)
    bar.set_label("test rows", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
    bar.ax.yaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")
    axes.set_title("Confusion matrix of the student", fontsize=11)
    if size <= NAMED_LABELS:
        names = [style.short(label, 24) for label in labels]
        fontsize = 9 if size <= 20 else 7
        axes.set_xticks(range(size), labels=names, rotation=90 if size > 6 else 30, fontsize=fontsize)
        if size <= 6:
            for tick in axes.get_xticklabels():
                tick.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(size), labels=names, fontsize=fontsize)
        axes.set(xlabel="predicted label", ylabel="gold label")
    else:
        axes.set(xticks=[], yticks=[])
        axes.set(xlabel=f"predicted label ({size}, sorted by name)", ylabel="gold label")
    if size <= WRITTEN_LABELS:
        _write_counts(axes, matrix_CC, most)
    return style.to_png(figure)


def accuracy_bars(metrics: Mapping[str, Any]) -> bytes:
    """Accuracy of student, ensemble, further classifiers and teachers on the test set.

    A diamond is a teacher's accuracy over the rows whose label it knows.
    """
    rows = [row for row in result_rows(metrics) if row.accuracy is not None]
    if not rows:
        raise ValueError("there is no accuracy to draw")
    order = {"student": 0, "ensemble": 1, "compare": 2, "teacher": 3}
    rows.sort(key=lambda row: order[row.kind])
    left_out = len(rows[BARS:])
    rows = rows[:BARS]
    # colour tells teachers from others: no need to write it before each name
    names = [style.short(row.name if row.kind == "teacher" else row.title) for row in rows]
    figure, axes = _bars(names, extra=0.7)
    handles = _draw_accuracy(axes, rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    more = f" ({left_out} more teachers: see the table)" if left_out else ""
    axes.set(xlim=(0, 1.02), xlabel="accuracy (share of rows)", xticks=np.linspace(0, 1, 6))
    axes.set_title(f"Accuracy on the test set{more}", fontsize=11, pad=18)
    return style.to_png(figure)


def _draw_accuracy(axes: Axes, rows: Sequence[ResultRow]) -> list[Artist]:
    """Bars and diamonds, and their values in columns to the right; returns what the legend explains."""
    looks = {
        "student": (style.BLUE, "student"),
        "ensemble": (style.ORANGE, "ensemble"),
        "compare": (style.GREEN, "for comparison"),
        "teacher": (style.GREY, "teacher, all rows"),
    }
    handles: list[Artist] = []
    for kind in dict.fromkeys(row.kind for row in rows):
        places = [i for i, row in enumerate(rows) if row.kind == kind]
        colour, label = looks[kind]
        values = [rows[i].accuracy or 0.0 for i in places]
        handles.append(axes.barh(places, values, color=colour, height=0.7, label=label)[0])
        handles[-1].set_label(label)
    columns = [(1.03, "all", [row.accuracy for row in rows])]
    own = [(row.own_accuracy, i) for i, row in enumerate(rows) if row.own_accuracy is not None]
    if own:
        look: dict[str, Any] = {"marker": "D", "s": 26, "facecolor": "white", "edgecolor": style.INK}
        x, y = zip(*own, strict=True)
        handles.append(axes.scatter(x, y, label="teacher, rows it knows", clip_on=False, zorder=3, **look))
        columns.append((1.14, "own", [row.own_accuracy for row in rows]))
    for x_axes, title, numbers in columns:
        place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
        axes.text(x_axes, -1.0, title, color="#555555", **place)
        for i, number in enumerate(numbers):
            if number is not None:
                axes.text(x_axes, i, f"{number:.4f}", **place)
    return handles


def _bars(names: Sequence[str], extra: float = 0.0) -> tuple[Figure, Axes]:
    """Axes for one horizontal bar per name, the first on top; `extra` inches below."""
    figure = style.new_figure(7.2, 1.3 + 0.27 * len(names) + extra)
    axes = style.plain(figure.subplots(), grid="x")
    axes.set_yticks(range(len(names)), labels=names, fontsize=9 if len(names) <= 20 else 8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    return figure, axes


def _distributions(teachers: Sequence[str], groups: Sequence[tuple[str, str, Counts]], title: str) -> bytes:
    for _, _, counts_MB in groups:
        _check(teachers, counts_MB)
    figure = _panels(teachers, groups) if len(teachers) <= PANELS else _heat_maps(teachers, groups)
    figure.suptitle(title, fontsize=11)
    return style.to_png(figure)


def _panels(teachers: Sequence[str], groups: Sequence[tuple[str, str, Counts]]) -> Figure:
    """One small histogram per teacher, on common axes."""
    columns = len(teachers) if len(teachers) <= 3 else 3
    lines = -(-len(teachers) // columns)
    figure = style.new_figure(max(3.2 * columns, 5.0), 2.3 * lines + 1.2)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for m, axes in enumerate(grid.flat):
        if m >= len(teachers):
            axes.set_axis_off()
            continue
        style.plain(axes, grid="y")
        for name, colour, counts_MB in groups:
            share_B = _percent(counts_MB[m])
            axes.stairs(share_B, EDGES, fill=True, alpha=0.35, color=colour, label=name)
            axes.stairs(share_B, EDGES, color=colour, linewidth=1.4)
        axes.set_title(style.short(teachers[m]), fontsize=9)
        # the lowest picture of a column carries its axis
        lowest = m + columns >= len(teachers)
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("score" if lowest else "", fontsize=10)
    grid[0, 0].set(xlim=(0, 1), ylim=(0, None))
    grid[0, 0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    figure.supylabel("share of rows (%)", fontsize=10)
    if len(groups) > 1:
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _heat_maps(teachers: Sequence[str], groups: Sequence[tuple[str, str, Counts]]) -> Figure:
    """One line per teacher, one picture per group."""
    count = len(teachers)
    figure = style.new_figure(3.2 + 3.6 * len(groups), 1.6 + min(0.2 * count, 12.0))
    grid = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    shares = [_percent(counts_MB) for _, _, counts_MB in groups]
    # a square root keeps small shares visible beside the peaks
    norm = PowerNorm(0.5, 0, max(float(max(share.max() for share in shares)), 1e-9))
    for axes, (name, _, _), share_MB in zip(grid, groups, shares, strict=True):
        image = axes.pcolormesh(EDGES, np.arange(count + 1) - 0.5, share_MB, cmap=style.SEQUENTIAL, norm=norm)
        axes.set(xlim=(0, 1), ylim=(count - 0.5, -0.5), xlabel="score")
        axes.tick_params(labelsize=8)
        if len(groups) > 1:
            axes.set_title(name, fontsize=9)
    if count <= BARS:
        grid[0].set_yticks(range(count), labels=[style.short(name) for name in teachers], fontsize=8)
    else:
        grid[0].set(yticks=[], ylabel=f"teacher ({count}, in the order of the configuration)")
    bar = figure.colorbar(image, ax=list(grid), pad=0.02, shrink=0.9, fraction=0.06, aspect=40)
    bar.set_label("share of the teacher's rows (%)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def _write_counts(axes: Axes, matrix_CC: Counts, most: int) -> None:
    for (gold, predicted), rows in np.ndenumerate(matrix_CC):
        if rows:
            dark = np.log(rows) / np.log(most) > 0.55
            colour = "white" if dark else style.INK
            axes.text(predicted, gold, f"{rows}", ha="center", va="center", fontsize=8, color=colour)


def _percent(counts: Counts) -> NDArray[np.float64]:
    """Counts as per cent of their sum along the last axis; 0 where there is none."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    return np.asarray(100 * counts / np.where(total > 0, total, 1))


def _check(teachers: Sequence[str], counts: Counts) -> None:
    if len(teachers) != len(counts):
        raise ValueError(f"{len(teachers)} teachers, but counts of {len(counts)}")
