"""The last projection: found at any depth, drawn from a seed, grown by label name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError
from muki_ray.student.heads import grow_head, last_projection
from muki_ray.student.model import build_student, inspect_student
from tests import tiny


def model(folder: Path, kind: str, labels: list[str]) -> Any:
    spec = inspect_student(StudentConfig(model=str(tiny.base(folder, kind))), 32)
    return build_student(spec, labels, 0, 0.0)[0]


# heads of one layer, of two, without a bias, and with a norm below
@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "gpt2", "deberta-v2", "modernbert"])
def test_rows_travel_by_label_name(kind: str, tmp_path: Path) -> None:
    grown = model(tmp_path / "base", kind, ["a", "b", "c"])
    name, head = last_projection(grown, 3)
    with torch.no_grad():
        head.weight.copy_(torch.arange(3.0)[:, None].expand_as(head.weight) + 1)
        if head.bias is not None:
            head.bias.copy_(torch.tensor([10.0, 20.0, 30.0]))
    rest = {key: t.clone() for key, t in grown.state_dict().items() if not key.startswith(name + ".")}
    grow_head(grown, ["a", "b", "c"], ["c", "new", "a", "other"], seed=5)
    found, head = last_projection(grown, 4)
    assert found == name
    assert torch.equal(head.weight[0], torch.full_like(head.weight[0], 3.0))
    assert torch.equal(head.weight[2], torch.full_like(head.weight[2], 1.0))
    assert all(0 < head.weight[row].std().item() < 0.05 for row in (1, 3))
    assert head.bias is None or head.bias.tolist() == [30.0, 0.0, 10.0, 0.0]
    assert all(torch.equal(grown.state_dict()[key], t) for key, t in rest.items())
    assert set(grown.state_dict()) - set(rest) == {
        f"{name}.{p}" for p in ("weight", "bias") if getattr(head, p) is not None
    }


def test_fresh_rows_are_those_of_a_fresh_head(tmp_path: Path) -> None:
    grown, fresh = (model(tmp_path / name, "bert", labels) for name, labels in (("one", ["a", "b"]), ("two", ["b", "x", "y"])))  # fmt: skip
    grow_head(grown, ["a", "b"], ["b", "x", "y"], seed=0)  # the seed that the fresh one was drawn from
    assert torch.equal(grown.classifier.weight[1:], fresh.classifier.weight[1:])
    assert not torch.equal(grown.classifier.weight[0], fresh.classifier.weight[0])


def test_a_model_without_a_projection_to_its_labels_is_refused(tmp_path: Path) -> None:
    odd = model(tmp_path / "base", "bert", ["a", "b"])
    odd.classifier = nn.Identity()
    with pytest.raises(StudentError, match="BertForSequenceClassification has no final projection to its 2"):
        last_projection(odd, 2)
