"""LoRA teachers: an adapter on a base model, with checks that it is the adapter that answers.

A classifier's head is no LoRA layer: it is stored whole among the adapter's tensors (`modules_to_save`), and
loading can silently keep the base model's fresh head instead, or pass over tensors made for another base.
Knows peft; knows no Ray.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muki_ray import hub
from muki_ray.errors import TeacherError
from muki_ray.teachers.checks import line

_HEADS = ("classifier", "score")
# the last projection of a head; what else it has, such as `classifier.dense`, says nothing of the labels
_PROJECTIONS = (*_HEADS, "out_proj")


@dataclass(frozen=True)
class Adapter:
    """A fetched adapter: its folder, how many labels its head has, its digest."""

    folder: Path
    num_labels: int
    content_hash: str


def fetch_adapter(location: str, allow_pickle: bool, name: str) -> Adapter:
    """Find an adapter and the size of its head.

    Raises:
        TeacherError: not found, no adapter_config.json, another method than LoRA, weights missing or pickled,
            or no trained head.
    """
    what = f"teacher {name!r}, adapter"
    try:
        import peft  # noqa: F401
    except ImportError as problem:
        raise TeacherError(f"{what}: LoRA teachers need peft; install muki-ray[lora]") from problem
    folder = hub.fetch(location, None, allow_pickle, TeacherError, what)
    _check_method(folder, what)
    hub.check_weights(folder, allow_pickle, TeacherError, what)
    heads = [tensor for key, tensor in _tensors(folder, what).items() if _is_projection(key)]
    if not heads:
        raise TeacherError(
            f"{what}: it holds no classification head; train it with modules_to_save: [classifier] (peft task type SEQ_CLS)"
        )
    return Adapter(folder, int(heads[-1].shape[0]), hub.content_hash(folder))


def shape_head(config: Any, adapter: Adapter) -> None:
    """Give the base's configuration the adapter's head.

    peft stores no label names, and the base's own may be those of another task, so the labels are unnamed.
    """
    config.id2label = {i: f"LABEL_{i}" for i in range(adapter.num_labels)}
    config.label2id = {label: i for i, label in config.id2label.items()}


def apply_adapter(model: Any, adapter: Adapter, fresh: Iterable[str], name: str) -> Any:
    """The base model with the adapter merged into its weights.

    Args:
        fresh: parameters of `model` that the base's weights do not fill.

    Raises:
        TeacherError: the adapter does not fit this base, or something other than it would answer.
    """
    from peft import PeftModel, get_peft_model_state_dict

    what = f"teacher {name!r}, adapter"
    stored = _tensors(adapter.folder, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of missing tensors is an error below
            wrapped = PeftModel.from_pretrained(model, adapter.folder, is_trainable=False)
            taken = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            merged = wrapped.merge_and_unload()
    except Exception as problem:  # whatever files from outside make the library raise
        raise TeacherError(
            f"{what}: cannot be put on this base model ({line(problem)}); give the one that it was trained on"
        ) from problem
    unmatched = {key for key in stored.keys() ^ taken.keys() if ".lora_" in key}
    if unmatched:
        raise TeacherError(
            f"{what}: {len(unmatched)} of its tensors do not meet a layer of the base model (such as {min(unmatched)}); "
            "give the base model that it was trained on"
        )
    whole = {_parameter_name(key): tensor for key, tensor in stored.items() if ".lora_" not in key}
    untrained = set(fresh) - set(whole)
    if untrained:
        raise TeacherError(
            f"{what}: {min(untrained)} is neither in the base model nor in the adapter, so its weights are not trained; "
            "add it to modules_to_save and train again"
        )
    parameters = dict(merged.named_parameters())
    for key, tensor in whole.items():
        own = parameters.get(key)
        if own is None or not torch.equal(own.detach().cpu(), tensor.to(own.dtype)):
            raise TeacherError(
                f"{what}: its {key} is not what got loaded; save the adapter again with a current peft"
            )
    return merged


def _check_method(folder: Path, what: str) -> None:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise TeacherError(
            f"{what}: no adapter_config.json in {str(folder)!r}; give the folder that peft wrote"
        )
    try:
        method = json.loads(path.read_text(encoding="utf-8")).get("peft_type")
    except (ValueError, AttributeError) as problem:
        raise TeacherError(f"{what}: cannot read {str(path)!r}: {line(problem)}; save it again") from problem
    if method != "LORA":
        raise TeacherError(f"{what}: its method is {method!r}; only LoRA adapters can be merged")


def _tensors(folder: Path, what: str) -> dict[str, torch.Tensor]:
    """The adapter's tensors; safetensors where there are any, as peft reads them."""
    from safetensors.torch import load_file

    safe, pickled = hub.weight_files(folder)
    tensors: dict[str, torch.Tensor] = {}
    try:
        for path in safe or pickled:
            tensors |= load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged file, or a pickle that is more than tensors
        raise TeacherError(
            f"{what}: {path.name} is not readable: {line(problem)}; save it again"
        ) from problem
    return tensors


def _parameter_name(key: str) -> str:
    """Name of a stored tensor in the plain model."""
    return key.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _is_projection(key: str) -> bool:
    parts = _parameter_name(key).split(".")
    return parts[0] in _HEADS and parts[-2:][0] in _PROJECTIONS and parts[-1] == "weight"
