"""DFA, direct feature amalgamation (Shen et al., AAAI 2019), in the one-stage form that MUKI section 3 compares with.

In every layer of the student an auto-encoder compresses the features of all teachers to the student's width, and a
projection of the student's own features follows what it makes of them. All of this is thrown away after training.

Shapes: B rows, H width of a layer of the student, H_m of the aligned layer of teacher m.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def aligned(student_layers: int, teacher_layers: int) -> list[int]:
    """Which layer of a teacher (counted from 0) each layer of the student is compared with; the last with the last.

    A deeper teacher is read with a stride, a shallower one repeats its layers.
    """
    # layer j of 1..S goes with layer ceil(j L / S) of 1..L
    return [-(-j * teacher_layers // student_layers) - 1 for j in range(1, student_layers + 1)]


def squared_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean over the columns of the squared difference, per row, `[B]`, in float32."""
    return (found.float() - wanted.float()).square().mean(dim=1)


class DfaLayer(nn.Module):
    """One aligned layer.

    Args:
        width: H.
        teacher_widths: H_m of every teacher; they may differ.
    """

    def __init__(self, width: int, teacher_widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(teacher_widths)
        self.encode_teachers = nn.Linear(sum(self.widths), width)
        self.decode_teachers = nn.Linear(width, sum(self.widths))
        self.encode_student = nn.Linear(width, width)

    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """`sum_m MSE(decode(r)_m, f_m) + MSE(encode(f_s), r)` per row, `[B]`, with `r = encode(f_1, ..., f_M)`.

        `r` leads the student and is not led by it: no gradient goes back through it from the second term.
        """
        together = self.encode_teachers(torch.cat(list(teachers), dim=1))
        restored = self.decode_teachers(together).split(self.widths, dim=1)
        rows = squared_error(self.encode_student(student), together.detach())
        for one, other in zip(restored, teachers, strict=True):
            rows = rows + squared_error(one, other)
        return rows


class Dfa(nn.Module):
    """All layers of the student.

    Args:
        student_widths: H of every layer of the student.
        teacher_widths: per teacher, the width of every layer.
    """

    def __init__(self, student_widths: Sequence[int], teacher_widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.places = [aligned(len(student_widths), len(widths)) for widths in teacher_widths]
        self.layers = nn.ModuleList(
            DfaLayer(width, [widths[own[j]] for widths, own in zip(teacher_widths, self.places, strict=True)])
            for j, width in enumerate(student_widths)
        )

    def reads(self) -> list[list[int]]:
        """Layers of each teacher that are looked at, counted from 0."""
        return [sorted(set(own)) for own in self.places]

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teachers: Sequence[Sequence[torch.Tensor]],
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """Sum over layers, and over rows with their weights `[B]`.

        Args:
            student: features of its layers, `[B, H]` each.
            teachers: per teacher a place for each of its layers; those of `reads` are `[B, H_m]`.
        """
        rows = torch.zeros_like(weights, dtype=torch.float32)
        for j, layer in enumerate(self.layers):
            fitting = [layers[own[j]] for layers, own in zip(teachers, self.places, strict=True)]
            rows = rows + layer(student[j], fitting)
        return (weights.float() * rows).sum()
