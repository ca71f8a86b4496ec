"""The student's last projection, one row per label: found, drawn, and grown from another student's by label name.

Knows Torch; knows no files. Shapes: C labels, H units below the projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from muki_ray.errors import StudentError


def last_projection(model: Any, labels: int) -> tuple[str, nn.Linear]:
    """Name and module of the last projection outside the encoder that has one row per label.

    Raises:
        StudentError: there is none.
    """
    inside = set(getattr(model, model.base_model_prefix).modules())
    outside = [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m not in inside and m.out_features == labels
    ]
    if not outside:
        raise StudentError(
            f"student: {type(model).__name__} has no final projection to its {labels} labels; choose another base model"
        )
    return outside[-1]


def draw_head(model: Any, labels: int, seed: int) -> None:
    """Draw the last projection anew, even where the base brought one of the same size over other labels."""
    _draw(last_projection(model, labels)[1], model.config, seed)


def grow_head(model: Any, before: Sequence[str], labels: Sequence[str], seed: int) -> None:
    """Put a projection over `labels` in the place of the one over `before`.

    Rows of labels that both know are taken over, the others are as `draw_head` draws them. What lies below the
    projection stays.
    """
    name, old = last_projection(model, len(before))
    new = nn.Linear(old.in_features, len(labels), bias=old.bias is not None)
    _draw(new, model.config, seed)
    known = [(i, before.index(label)) for i, label in enumerate(labels) if label in before]
    with torch.no_grad():
        for here, there in known:
            new.weight[here] = old.weight[there]
            if old.bias is not None:
                new.bias[here] = old.bias[there]
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _draw(head: nn.Linear, config: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, getattr(config, "initializer_range", 0.02), generator=generator)
        if head.bias is not None:
            head.bias.zero_()
