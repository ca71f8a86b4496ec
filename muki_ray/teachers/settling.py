"""Early stop: a row whose own score has settled needs no more samples.

Pure functions on tensors. A row's decision depends on nothing but its own samples, so its evidence does not depend on
its batch.

Shapes: G samples drawn so far, B rows, C_m labels.
"""

from __future__ import annotations

import math

import torch


def standard_error(logits: torch.Tensor) -> torch.Tensor:
    """Standard error of each row's normalised entropy of the mean prediction, `[B]`.

    By the delta method: the entropy of the mean changes by `-sum_y log p(y) dp(y)` to first order, so its error is that
    of the mean over the samples of `-sum_y log p(y) p_g(y)`; over log C_m, the scale of the score (0 to 1).

    Args:
        logits: `[G, B, C_m]`, G at least 2; NaN where none was drawn.
    """
    probs = logits.softmax(dim=-1)
    drawn = ~logits[..., 0].isnan()
    count = drawn.sum(dim=0)
    mean = probs.nansum(dim=0) / count[:, None]
    surprise = -torch.log(mean.clamp(min=torch.finfo(mean.dtype).tiny))
    influence = (probs * surprise).sum(dim=-1)  # [G, B]
    centre = influence.nansum(dim=0) / count
    variance = ((influence - centre) ** 2).nansum(dim=0) / (count - 1).clamp(min=1)
    return (variance / count).sqrt() / math.log(logits.shape[-1])


def unsettled(logits: torch.Tensor, bound: float) -> torch.Tensor:
    """Rows whose score is not known to `bound` yet, `bool [B]`; rows that are not numbers are left as they are."""
    drawn_last = ~logits[-1, :, 0].isnan()
    return drawn_last & (standard_error(logits) > bound)
