"""CFL, common feature learning (Luo et al., IJCAI 2019), in the form that MUKI section 3 compares with.

The last layers of student and teachers are mapped into one space, where their distributions over the rows of a batch
are to be equal (maximum mean discrepancy) while every teacher's features can still be told from it. The modules are
thrown away after training.

Shapes: B rows, D width of the common space, H width of the student's last layer, H_m of that of teacher m.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from muki_ray.baselines.dfa import squared_error

_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# of vectors that all but coincide no discrepancy can be told, and its gradient would have no bound
_LEAST_SPREAD = 1e-6


def mmd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Squared maximum mean discrepancy of two samples of `B` rows, `[]`, 0 where they are equal.

    `(sum K(x, x') + sum K(y, y') - 2 sum K(x, y)) / B^2` with `K(a, b) = sum_c exp(-|a - b|^2 / (2 c s^2))` for c of
    1/4, 1/2, 1, 2, 4, and `s^2` the mean squared distance of all pairs, which counts as a constant.

    Args:
        x, y: `[B, D]` each.
    """
    with torch.autocast(x.device.type, enabled=False):  # distances are small differences of large products
        x, y = x.float(), y.float()
        xx, yy, xy = _square_distances(x, x), _square_distances(y, y), _square_distances(x, y)
        spread = ((xx + yy + 2 * xy) / 4).mean().detach().clamp(min=_LEAST_SPREAD)
        total = _kernel(xx, spread) + _kernel(yy, spread) - 2 * _kernel(xy, spread)
        return total.clamp(min=0.0)  # below 0 by rounding only


def _square_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`[B, B]`."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0.0)


def _kernel(distances: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Mean over all pairs."""
    return sum(
        (torch.exp(-distances / (2 * c * spread)).mean() for c in _BANDWIDTHS), torch.zeros_like(spread)
    )


class Cfl(nn.Module):
    """The common space.

    Args:
        student_width: H.
        teacher_widths: H_m of every teacher; they may differ.
        width: D; None for a quarter of H.
    """

    def __init__(self, student_width: int, teacher_widths: Sequence[int], width: int | None = None) -> None:
        super().__init__()
        width = width or max(1, student_width // 4)

        def align(own: int) -> nn.Module:
            return nn.Sequential(nn.Linear(own, width), nn.ReLU())

        self.align_student = align(student_width)
        self.align_teachers = nn.ModuleList(align(own) for own in teacher_widths)
        self.extract = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.decode_teachers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, own), nn.ReLU(), nn.Linear(own, own)) for own in teacher_widths
        )

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teachers: Sequence[Sequence[torch.Tensor]],
        weights: torch.Tensor,
    ) -> torch.Tensor:
        """`sum_m MMD(g(f_s), g(f_m)) + MSE(decode(g(f_m)), f_m)`, summed over the rows with their weights `[B]`.

        Args:
            student: features of its layers, `[B, H]` each; the last is used.
            teachers: per teacher a place for each of its layers; the last is `[B, H_m]`.

        MMD is of the batch as a whole, on vectors of length 1, and counts once for every row: it depends on which
        rows are read together.
        """
        own = _unit(self.extract(self.align_student(student[-1])))
        total = torch.zeros_like(weights[:1], dtype=torch.float32).sum()
        parts = zip(teachers, self.align_teachers, self.decode_teachers, strict=True)
        for layers, align, decode in parts:
            common = self.extract(align(layers[-1]))
            total = total + weights.float().sum() * mmd(own, _unit(common))
            total = total + (weights.float() * squared_error(decode(common), layers[-1])).sum()
        return total


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(vectors.float(), dim=1)
