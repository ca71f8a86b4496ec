"""LoRA teachers: an adapter on a base model, with a check that the adapter's own head is what answers.

A classifier's head is no LoRA layer: it is stored whole among the adapter's tensors (`modules_to_save`), and
loading can silently keep the base model's fresh head instead. Knows peft; knows no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muki_ray import hub
from muki_ray.errors import TeacherError

_HEADS = ("classifier", "score", "pre_classifier")


@dataclass(frozen=True)
class Adapter:
    """A fetched adapter: its folder, how many labels its head has, its digest."""

    folder: Path
    num_labels: int
    content_hash: str


def fetch_adapter(location: str, allow_pickle: bool, name: str) -> Adapter:
    """Find an adapter and the size of its head.

    Raises:
        TeacherError: not found, no adapter_config.json, weights missing or pickled, or no trained head.
    """
    what = f"teacher {name!r}, adapter"
    try:
        import peft  # noqa: F401
    except ImportError as problem:
        raise TeacherError(f"{what}: LoRA teachers need peft; install muki-ray[lora]") from problem
    folder = hub.fetch(location, None, allow_pickle, TeacherError, what)
    if not (folder / "adapter_config.json").is_file():
        raise TeacherError(
            f"{what}: no adapter_config.json in {str(folder)!r}; give the folder that peft wrote"
        )
    hub.check_weights(folder, allow_pickle, TeacherError, what)
    heads = [shape for key, shape in hub.tensor_shapes(folder).items() if _is_head(key) and len(shape) == 2]
    if not heads:
        raise TeacherError(
            f"{what}: it holds no classification head; train it with modules_to_save: [classifier] (peft task type SEQ_CLS)"
        )
    return Adapter(folder, min(shape[0] for shape in heads), hub.content_hash(folder))


def apply_adapter(model: Any, adapter: Adapter, name: str) -> Any:
    """The base model with the adapter merged into its weights.

    Raises:
        TeacherError: the head that would answer is not the adapter's.
    """
    from peft import PeftModel
    from safetensors.torch import load_file

    id2label = model.config.id2label
    merged = PeftModel.from_pretrained(model, adapter.folder, is_trainable=False).merge_and_unload()
    merged.config.id2label = id2label
    parameters = dict(merged.named_parameters())
    for path in hub.weight_files(adapter.folder)[0]:
        for key, stored in load_file(path).items():
            if not _is_head(key):
                continue
            own = parameters.get(key.removeprefix("base_model.model."))
            if (
                own is None
                or own.shape != stored.shape
                or not torch.equal(own.detach().cpu(), stored.to(own.dtype))
            ):
                raise TeacherError(
                    f"teacher {name!r}: the adapter's head ({key}) is not what got loaded; save the adapter again with a current peft"
                )
    return merged


def _is_head(key: str) -> bool:
    parts = key.removeprefix("base_model.model.").split(".")
    return parts[0] in _HEADS and "lora_A" not in parts and "lora_B" not in parts
