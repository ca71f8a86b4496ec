"""The results of a run as rows, and as the plain-text table at the end of a run.

Pure: knows the dict that `muki_ray.evaluation.evaluate_run` returns, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from muki_ray.evaluation import RESERVED

Kind = Literal["teacher", "ensemble", "student", "compare"]

MISSING = "-"
HEADER = ("", "accuracy", "macro-F1", "ECE", "own labels")


@dataclass(frozen=True)
class ResultRow:
    """One classifier's numbers; None where a value is undefined or not measured."""

    kind: Kind
    name: str
    accuracy: float | None
    macro_f1: float | None
    ece: float | None
    own_accuracy: float | None = None

    @property
    def title(self) -> str:
        """How tables and pictures call it."""
        return {"teacher": f"teacher {self.name}", "compare": self.name}.get(self.kind, self.kind)

    def cells(self) -> tuple[str, ...]:
        """Title and values as text, in the order of `HEADER`."""
        return (self.title, *map(_text, (self.accuracy, self.macro_f1, self.ece, self.own_accuracy)))


def result_rows(metrics: Mapping[str, Any]) -> list[ResultRow]:
    """Teachers in their order, ensemble, student, then the classifiers to compare with.

    Other entries of `metrics` (a value, or a part without accuracy) are passed over.
    """
    kinds: tuple[Kind, ...] = ("ensemble", "student")
    rows = [_row("teacher", name, values) for name, values in (metrics.get("teachers") or {}).items()]
    rows += [_row(kind, kind, metrics[kind]) for kind in kinds if metrics.get(kind)]
    return rows + [
        _row("compare", name, values)
        for name, values in metrics.items()
        if name not in RESERVED and isinstance(values, Mapping) and "accuracy" in values
    ]


def results_table(metrics: Mapping[str, Any]) -> str:
    """The table, aligned, values with 4 decimals, missing ones as `-`; empty where nothing was evaluated.

    The column "own labels" is a teacher's accuracy over the rows whose gold label it knows.
    """
    rows = [row.cells() for row in result_rows(metrics)]
    if not rows:
        return ""
    header, *lines = aligned(HEADER, rows)
    return "\n".join([header, "  ".join("-" * width for width in _widths(HEADER, rows)), *lines])


def aligned(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines whose first column begins, and whose other columns end, at the same place."""
    widths = _widths(header, rows)

    def line(cells: tuple[str, ...]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers])

    return [line(cells) for cells in (header, *rows)]


def _widths(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(len(cells[column]) for cells in (header, *rows)) for column in range(len(header))]


def _row(kind: Kind, name: str, values: Mapping[str, Any]) -> ResultRow:
    numbers = (values.get(key) for key in ("accuracy", "macro_f1", "ece", "own_accuracy"))
    return ResultRow(kind, name, *numbers)


def _text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"
