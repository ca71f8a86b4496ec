"""The student's loss (MUKI section 2.2.2): KL from the target to the student, row by row, weighted.

Knows Torch only. KL(target || student), as in the released code: the other direction is infinite wherever a
target is zero, which is everywhere outside the teachers' labels.

Shapes: B rows, C union labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def kl_rows(logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`T^2 sum_y t(y) (log t(y) - log q(y))` per row, `[B]`, in float32; 0 log 0 = 0.

    Args:
        logits: the student's, `[B, C]`.
        targets: rows that sum to 1, `[B, C]`.
        temperature: T, q is the softmax of `logits / T`; the factor keeps gradients of one size whatever T is.
    """
    targets = targets.float()
    log_probs = (logits.float() / temperature).log_softmax(dim=-1)
    return (torch.special.xlogy(targets, targets) - targets * log_probs).sum(dim=-1) * temperature**2


def weighted_kl(
    logits: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    rows: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = kl_rows,
) -> torch.Tensor:
    """Sum over the rows of weight times KL: divide by the rows of the whole batch, over all workers.

    Args:
        rows: the divergence of each row, `[B]`, from logits and targets.
    """
    return (weights.float() * rows(logits, targets)).sum()
