"""The student's loss (MUKI section 2.2.2): KL from the target to the student, row by row, weighted.

Knows Torch only. KL(target || student), as in the released code: the other direction is infinite wherever a
target is zero, which is everywhere outside the teachers' labels.

Shapes: B rows, C union labels.
"""

from __future__ import annotations

import torch


def kl_rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`sum_y t(y) (log t(y) - log q(y))` per row, `[B]`, in float32; 0 log 0 = 0.

    Args:
        logits: the student's, `[B, C]`.
        targets: rows that sum to 1, `[B, C]`.
    """
    targets = targets.float()
    return (torch.special.xlogy(targets, targets) - targets * logits.float().log_softmax(dim=-1)).sum(dim=-1)


def weighted_kl(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum over the rows of weight times KL: divide by the rows of the whole batch, over all workers."""
    return (weights.float() * kl_rows(logits, targets)).sum()
