"""The student: any base model, with a fresh head over the union of the labels.

Knows Transformers and Torch; knows no supervision, no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from muki_ray import hub
from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError, TeacherError
from muki_ray.teachers.loading import MAX_LENGTH, load_tokenizer, quiet

_WHAT = "student"


@dataclass(frozen=True)
class StudentSpec:
    """A base model, inspected. `content` is the digest of its files; `max_length` in tokens."""

    location: str
    revision: str | None
    allow_pickle: bool
    max_length: int
    content: str


def inspect_student(config: StudentConfig, default_max_length: int) -> StudentSpec:
    """Check the base model before anything is scored.

    Raises:
        StudentError: not found, no weights, no tokenizer, no classifier form, or max_length beyond its positions.
    """
    folder = hub.fetch(config.model, config.revision, config.allow_pickle, StudentError, _WHAT)
    if not (folder / "config.json").is_file():
        raise StudentError(f"student: no config.json in {str(folder)!r}; give the folder of a base model")
    hub.check_weights(folder, config.allow_pickle, StudentError, _WHAT)
    base, tokenizer = _read(folder)
    if type(base) not in AutoModelForSequenceClassification._model_mapping:
        raise StudentError(
            f"student: {base.model_type!r} models have no sequence classifier in Transformers; choose another base model"
        )
    limit = min(tokenizer.model_max_length, getattr(base, "max_position_embeddings", None) or 10**9)
    if config.max_length is not None and config.max_length > limit:
        raise StudentError(f"student takes at most {limit} tokens, got max_length: {config.max_length}")
    max_length = config.max_length or min(default_max_length, limit, MAX_LENGTH)
    location = str(folder) if Path(config.model).expanduser().is_dir() else config.model
    return StudentSpec(location, config.revision, config.allow_pickle, max_length, hub.content_hash(folder))


def build_student(spec: StudentSpec, labels: list[str], seed: int, dropout: float | None) -> tuple[Any, Any]:
    """Model in float32 with a fresh head over `labels`, and its tokenizer.

    The head is drawn from `seed`: the same on every worker.
    """
    quiet()
    folder = hub.fetch(spec.location, spec.revision, spec.allow_pickle, StudentError, _WHAT)
    base, tokenizer = _read(folder)
    base.num_labels = len(labels)
    base.id2label = dict(enumerate(labels))
    base.label2id = {name: i for i, name in enumerate(labels)}
    base.problem_type = "single_label_classification"
    torch.manual_seed(seed)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, config=base, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False,
            use_safetensors=None if spec.allow_pickle else True, weights_only=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise StudentError(
            f"student: cannot load {str(folder)!r}: {str(problem).splitlines()[0]}"
        ) from problem
    _fresh_head(model, len(labels), seed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    return model, tokenizer


def _read(folder: Path) -> tuple[Any, Any]:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False), load_tokenizer(folder, _WHAT)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StudentError(
            f"student: cannot read {str(folder)!r}: {str(problem).splitlines()[0]}"
        ) from problem
    except TeacherError as problem:
        raise StudentError(str(problem)) from problem


def _fresh_head(model: Any, labels: int, seed: int) -> None:
    """Draw the last projection anew, even where the base brought one of the same size over other labels."""
    inside = set(getattr(model, model.base_model_prefix).modules())
    outside = [
        m
        for m in model.modules()
        if isinstance(m, nn.Linear) and m not in inside and m.out_features == labels
    ]
    if not outside:
        raise StudentError(
            f"student: {type(model).__name__} has no final projection to its {labels} labels; choose another base model"
        )
    head = outside[-1]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, getattr(model.config, "initializer_range", 0.02), generator=generator)
        if head.bias is not None:
            head.bias.zero_()
