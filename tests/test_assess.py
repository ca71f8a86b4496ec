"""Where a classifier runs that is evaluated; what it says is in `test_workflow.py`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from muki_ray import assess
from muki_ray.assess import Classifier, predict, predict_here, predict_on_cluster
from muki_ray.teachers import loading

ONE = Classifier("one", "/nowhere")


class AskedError(Exception):
    """A classifier was to be loaded; the message is the device."""


@pytest.fixture
def machine_with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process sees a GPU, reserved or not, as on a cluster of this package's settings."""

    def load(*_: Any, device: str, **__: Any) -> None:
        raise AskedError(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "load_classifier", load)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (0.5, "cuda"), (1, "cuda")])
def test_a_gpu_is_used_only_where_one_is_reserved(
    gpus: float, device: str, machine_with_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AskedError, match=f"^{device}$"):
        predict_here([ONE], ["a"], None, ["x", "y"], 1, gpus)

    def remote(function: Any) -> Any:  # a Ray that runs its tasks at once
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=function))

    errors = SimpleNamespace(RayError=RuntimeError)
    local = SimpleNamespace(remote=remote, put=lambda value: value, get=list, exceptions=errors)
    monkeypatch.setattr(assess, "ray", local)
    with pytest.raises(AskedError, match=f"^{device}$"):
        predict_on_cluster([ONE], ["a"], None, ["x", "y"], 1, gpus)


def test_who_reserves_nothing_uses_what_is_there(
    machine_with_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AskedError, match=r"^cuda$"):
        predict(ONE, ["a"], None, ["x", "y"], 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AskedError, match=r"^cpu$"):
        predict(ONE, ["a"], None, ["x", "y"], 1)
