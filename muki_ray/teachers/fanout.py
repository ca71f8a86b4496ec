"""A compiled program at work: what the samples share runs once, the samples run in groups.

Knows programs and tensors; draws no mask, decides nothing. Shapes: B rows of a batch, K samples, G samples run
together, H hidden size, C_m labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from muki_ray.teachers.program import Program


@dataclass(frozen=True)
class Shared:
    """A batch after its shared part."""

    values: tuple[torch.Tensor, ...]
    rows: int
    tokens: int


class FanOut:
    """Samples of a captured classifier.

    Args:
        masks: per site `[K+1, H]`.
    """

    def __init__(self, program: Program, masks: Mapping[str, torch.Tensor]) -> None:
        self.program = program
        self.masks = [masks[name] for name in program.sites]
        self.widened = program.widened

    def start(self, inputs: Mapping[str, torch.Tensor]) -> Shared:
        """Run what the samples of a batch share."""
        rows, tokens = inputs["input_ids"].shape
        values = self.program.shared(rows, tokens, *(inputs[name] for name in self.program.inputs))
        return Shared(tuple(values), rows, tokens)

    def logits(self, shared: Shared, first: int, last: int, rows: torch.Tensor | None) -> torch.Tensor:
        """Logits of samples `first` to `last` (exclusive) of some rows, `[G, B, C_m]`.

        Args:
            rows: positions, None for all.
        """
        if self.program.sampled is None:
            logits = shared.values[0] if rows is None else shared.values[0][rows]
            return logits[None]
        values, count = shared.values, shared.rows
        if rows is not None:
            count = len(rows)
            values = tuple(_of_rows(v, rows, n) for v, n in zip(values, self.program.per_row, strict=True))
        samples = last - first
        arguments = {f"shared_{i}": value for i, value in enumerate(values)}
        masks = {f"mask_{i}": mask[first:last] for i, mask in enumerate(self.masks)}
        logits = self.program.sampled(samples, samples * count, shared.tokens, **arguments, **masks)
        return logits.unflatten(0, (samples, count))


def _of_rows(value: torch.Tensor, rows: torch.Tensor, per_row: int) -> torch.Tensor:
    """Some rows of a value that holds `per_row` entries for each."""
    if per_row == 0:
        return value
    if per_row == 1:
        return value[rows]
    return value.unflatten(0, (-1, per_row))[rows].flatten(0, 1)
