"""What can be said against a classifier from its configuration, its tokenizer and the shapes of its tensors.

Every check raises a TeacherError of one line. Knows Transformers; reads no weights, opens no network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from muki_ray.errors import TeacherError

# the papers cut at 128; longer texts cost quadratically, and most classifiers were trained on no more
MAX_LENGTH = 512
_AUTO_CLASS = "AutoModelForSequenceClassification"


def line(problem: BaseException) -> str:
    """First line of what a library said."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def check_no_code(folder: Path, what: str) -> None:
    """Refuse a model that brings its own code: it is never run, and other code might answer otherwise."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        code = config.get("auto_map") or {}
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as problem:
        raise TeacherError(
            f"{what}: cannot read config.json in {str(folder)!r}: {line(problem)}; save the model again"
        ) from problem
    # configurations of models that Transformers has adopted since often still name the code they once came with
    if code and (_AUTO_CLASS in code or kind not in CONFIG_MAPPING):
        raise TeacherError(
            f"{what}: model type {kind!r} brings its own code (auto_map in config.json), which is never run; "
            "choose a model that Transformers has itself"
        )


def check_kind(config: Any, what: str) -> None:
    """Only single-label classification can be integrated, or compared, over a union."""
    if config.problem_type == "multi_label_classification":
        raise TeacherError(
            f"{what} is a multi-label classifier (problem_type multi_label_classification); only single-label classifiers will do"
        )
    if config.problem_type == "regression" or config.num_labels < 2:
        raise TeacherError(
            f"{what} is a regression model ({config.num_labels} output); only classifiers with at least 2 labels will do"
        )


def skeleton(config: Any, what: str) -> Any:
    """The model without weights, to know the names and shapes that it wants."""
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except Exception as problem:  # whatever a configuration from outside makes the library raise
        raise TeacherError(
            f"{what}: its config.json (model_type {config.model_type!r}) describes no sequence classifier that Transformers can build: "
            f"{line(problem)}"
        ) from problem


def check_head(model: Any, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """The stored head exists and has one row per label.

    Args:
        model: as `skeleton` gives it.
        shapes: of the stored tensors, by name.
    """
    for name, parameter in model.named_parameters():
        if name.startswith(model.base_model_prefix + "."):
            continue
        if name not in shapes:
            raise TeacherError(
                f"{what}: its classification head is not in the weights ({name} is missing); give a fine-tuned classifier, not a base model"
            )
        if shapes[name] != tuple(parameter.shape):
            raise TeacherError(
                f"{what}: {name} has shape {shapes[name]} in the weights but {tuple(parameter.shape)} by config.json; "
                f"mend id2label ({model.config.num_labels} labels)"
            )


def usable_length(wanted: int | None, tokenizer: Any, model: Any, what: str) -> int:
    """Tokens kept of a text: what the user says, at most what tokenizer and positions allow."""
    positions = getattr(model.config, "max_position_embeddings", None) or 10**9
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            # RoBERTa and its kin count positions from the one after the padding index
            positions = min(positions, module.num_embeddings - module.padding_idx - 1)
    limit = int(min(tokenizer.model_max_length, positions))
    if wanted is not None and wanted > limit:
        raise TeacherError(
            f"{what} takes at most {limit} tokens, got max_length: {wanted}; use {limit} or less"
        )
    length = wanted or min(limit, MAX_LENGTH)
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if length < least:
        raise TeacherError(f"{what}: max_length {length} leaves no room for text; use at least {least}")
    return length


def set_padding(tokenizer: Any, config: Any, what: str) -> None:
    """Make tokenizer and model agree on the padding, so that a row's answer does not depend on its batch.

    Decoders often have no padding token; their classifiers find each row's last token by it, and read its id
    from the configuration.
    """
    if tokenizer.pad_token_id is None:
        own = getattr(config, "pad_token_id", None)
        tokenizer.pad_token = (
            tokenizer.convert_ids_to_tokens(own) if own is not None and own >= 0 else tokenizer.eos_token
        )
    if tokenizer.pad_token_id is None:
        raise TeacherError(
            f"{what}: its tokenizer has neither a padding nor an end token; set pad_token in its tokenizer_config.json"
        )
    size = getattr(config, "vocab_size", None)
    if size is not None and tokenizer.pad_token_id >= size:
        raise TeacherError(
            f"{what}: its padding token {tokenizer.pad_token!r} has id {tokenizer.pad_token_id}, but the model has {size} embeddings; "
            "save the model's own tokenizer beside it"
        )
    config.pad_token_id = tokenizer.pad_token_id
    # absolute positions and "last token before the padding" need it on the right; XLNet reads the very last one
    tokenizer.padding_side = "left" if getattr(config, "summary_type", None) == "last" else "right"
