"""UHC, unifying heterogeneous classifiers (Vongkulbhisal et al., CVPR 2019), trained end to end as in MUKI section 3.

A teacher is taken for the unified classifier `q` seen through its own labels only: `p_m(y) = q(y) / sum_{y' in Y_m} q(y')`.
How much mass the block of a teacher has as a whole, these equations do not say where label sets are disjoint.

Shapes: B rows, C union labels, C_m labels of teacher m, W columns of a target: the blocks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from muki_ray.student.losses import kl_rows


def uhc_rows(
    logits: torch.Tensor, targets: torch.Tensor, blocks: Sequence[torch.Tensor], temperature: float
) -> torch.Tensor:
    """`T^2 sum_m KL(t_m || q_m)` per row, `[B]`, in float32.

    Args:
        logits: the student's, `[B, C]`.
        targets: the teachers' distributions side by side, `[B, W]`.
        blocks: places of each teacher's labels in the union, `int64 [C_m]`, on the logits' device; they may overlap.
        temperature: T, of the student's softmax; the targets have theirs already.

    `q_m`, the student's softmax over the union renormalised over a block, is the softmax of the block's logits.
    """
    rows = torch.zeros(len(logits), device=logits.device)
    parts = targets.split([len(places) for places in blocks], dim=1)
    for places, part in zip(blocks, parts, strict=True):
        rows = rows + kl_rows(logits.index_select(1, places), part, temperature)
    return rows
