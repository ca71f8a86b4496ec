"""The student: any base model, with a fresh head over the union of the labels.

Knows Transformers and Torch; knows no supervision, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from muki_ray import hub
from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError, TeacherError
from muki_ray.teachers.checks import check_no_code, line, set_padding, skeleton, usable_length
from muki_ray.teachers.loading import load_tokenizer, quiet

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
        StudentError: not found, no weights, no tokenizer, no padding, no classifier form, code of its own, or a
            max_length that its positions do not allow.
    """
    folder = hub.fetch(config.model, config.revision, config.allow_pickle, StudentError, _WHAT)
    if not (folder / "config.json").is_file():
        raise StudentError(f"student: no config.json in {str(folder)!r}; give the folder of a base model")
    hub.check_weights(folder, config.allow_pickle, StudentError, _WHAT)
    base, tokenizer = _read(folder)
    with _as_student_error():
        usable = usable_length(config.max_length, tokenizer, skeleton(base, _WHAT), _WHAT)
    max_length = config.max_length or min(default_max_length, usable)
    location = str(folder) if Path(config.model).expanduser().is_dir() else config.model
    return StudentSpec(location, config.revision, config.allow_pickle, max_length, hub.content_hash(folder))


def build_student(spec: StudentSpec, labels: list[str], seed: int, dropout: float | None) -> tuple[Any, Any]:
    """Model in float32 with a fresh head over `labels`, and its tokenizer.

    The head is drawn from `seed`: the same on every worker.

    Args:
        dropout: rate of every dropout while training; None keeps the base's. The saved configuration keeps the
            base's rates in any case.

    Raises:
        StudentError: it cannot be loaded, its encoder has no weights, or it is not what was inspected.
    """
    quiet()
    folder = hub.fetch(spec.location, spec.revision, spec.allow_pickle, StudentError, _WHAT)
    if hub.content_hash(folder) != spec.content:
        raise StudentError(
            "student: the base model on this machine differs from the one the driver saw; "
            "pin a revision or give every node the same folder"
        )
    base, tokenizer = _read(folder)
    base.num_labels = len(labels)
    base.id2label = dict(enumerate(labels))
    base.label2id = {name: i for i, name in enumerate(labels)}
    base.problem_type = "single_label_classification"
    torch.manual_seed(seed)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, config=base, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False,
            use_safetensors=None if spec.allow_pickle else True, weights_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as problem:  # whatever files from outside make the library raise
        raise StudentError(f"student: cannot load {str(folder)!r}: {line(problem)}") from problem
    _check_encoder(model, info)
    _fresh_head(model, len(labels), seed)
    if dropout is not None:
        _set_dropout(model, dropout)
    return model, tokenizer


@contextmanager
def _as_student_error() -> Iterator[None]:
    """The checks are shared with the teachers; who fails them is named by the kind of error."""
    try:
        yield
    except TeacherError as problem:
        raise StudentError(str(problem)) from problem


def _read(folder: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer, agreed on a padding token: decoders often come without one."""
    with _as_student_error():
        check_no_code(folder, _WHAT)
        try:
            base = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as problem:  # whatever files from outside make the library raise
            raise StudentError(f"student: cannot read {str(folder)!r}: {line(problem)}") from problem
        tokenizer = load_tokenizer(folder, _WHAT)
        set_padding(tokenizer, base, _WHAT)
    return base, tokenizer


def _check_encoder(model: Any, info: dict[str, Any]) -> None:
    """Only the head may start from chance, and a pooler below it, which many base models were saved without."""
    prefix = model.base_model_prefix + "."
    absent = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    drawn = sorted(key for key in absent if key.startswith(prefix) and "pooler" not in key)
    if drawn:
        raise StudentError(
            f"student: {len(drawn)} tensors of its encoder are not in the weights (such as {drawn[0]}) and would "
            "start from chance; give a folder whose weights fit its config.json"
        )


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


def _set_dropout(model: Any, rate: float) -> None:
    """Every dropout, also those that attention layers keep as a plain number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if isinstance(value, float) and "dropout" in name:
                setattr(module, name, rate)
