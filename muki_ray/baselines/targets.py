"""What the baselines' students learn from: targets out of the teachers' deterministic logits, every row with weight 1.

Pure functions on arrays; they know no files, no models, no Torch.

Shapes: N rows, M teachers, C union labels, C_m labels of teacher m, W columns of a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muki_ray.config_method import BaselineMethod, UhcMethod
from muki_ray.integration import Supervision, scatter
from muki_ray.labels import LabelSpace
from muki_ray.uncertainty import Floats, softmax


def vanilla_kd_targets(
    logits: Sequence[Floats], index: Sequence[NDArray[np.int64]], size: int, temperature: float
) -> NDArray[np.float64]:
    """`softmax(concat_m(z_m) / T)`, placed in the union by label name, where labels in common add up. `[N, C]`.

    The vanilla knowledge distillation that MUKI section 3 compares with. It compares logits of teachers that never
    learned to share a scale: the teacher with the largest logits gets the mass.

    Args:
        logits: per teacher `[N, C_m]`.
        index: per teacher, places of its labels in the union, `[C_m]`.
        size: C.
    """
    together = np.concatenate([np.asarray(z, dtype=np.float64) for z in logits], axis=1)
    return scatter(softmax(together, temperature), np.concatenate(list(index)), size)


def blocks(index: Sequence[NDArray[np.int64]]) -> tuple[tuple[int, ...], ...]:
    """Per teacher the places of its labels in the union, each once, in the order of its logits.

    Two labels of a teacher that were merged on purpose are one place.
    """
    return tuple(tuple(dict.fromkeys(places.tolist())) for places in index)


def uhc_targets(
    logits: Sequence[Floats], index: Sequence[NDArray[np.int64]], size: int, temperature: float
) -> NDArray[np.float64]:
    """Every teacher's `softmax(z_m / T)` side by side: `[N, W]`, W the sum of the blocks' sizes; rows sum to M.

    Arguments as in `vanilla_kd_targets`; the columns of teacher m stand for the places `blocks(index)[m]`.
    """
    parts = [
        scatter(softmax(z, temperature), places, size)[:, list(block)]
        for z, places, block in zip(logits, index, blocks(index), strict=True)
    ]
    return np.concatenate(parts, axis=1)


def baseline_targets(
    method: BaselineMethod, logits: Sequence[Floats], index: Sequence[NDArray[np.int64]], size: int
) -> NDArray[np.float64]:
    """The method's targets, `[N, W]`: the blocks of all teachers for `uhc`, else a distribution over the union (W = C)."""
    make = uhc_targets if isinstance(method, UhcMethod) else vanilla_kd_targets
    return make(logits, index, size, method.temperature)


def baseline_supervision(
    method: BaselineMethod, logits: Sequence[Floats], space: LabelSpace, scores_NM: Floats
) -> Supervision:
    """Targets and weights of `N` rows, all weights 1.

    Args:
        logits: per teacher, deterministic and finite, `[N, C_m]`.
        scores_NM: what the report calls the best teacher of a row by; no target depends on them.
    """
    targets = baseline_targets(method, logits, space.index, len(space))
    return Supervision(targets, np.ones(len(targets)), scores_NM.argmax(axis=1).astype(np.int64))
