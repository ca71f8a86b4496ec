"""The student: any base model with a fresh head over the union of the labels, or an earlier student with a grown one.

Knows Transformers and Torch; knows no supervision, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from muki_ray import filesystem as locations
from muki_ray import hub
from muki_ray.config import StudentConfig
from muki_ray.errors import StudentError, TeacherError
from muki_ray.store import fingerprint
from muki_ray.student.heads import draw_head, grow_head
from muki_ray.teachers.checks import check_no_code, line, set_padding, skeleton, usable_length
from muki_ray.teachers.loading import load_tokenizer, quiet

_WHAT = "student"
_PREVIOUS = "student.init"
# what may differ between a base model and a student made from it: names, and rates that training sets as it likes
_NO_ARCHITECTURE = {"architectures", "dtype", "torch_dtype", "problem_type", "id2label", "label2id", "num_labels",
                    "pad_token_id", "_name_or_path", "transformers_version"}  # fmt: skip


@dataclass(frozen=True)
class Previous:
    """A finished student to start from. `content` is the digest of its files and label names."""

    location: str
    content: str


@dataclass(frozen=True)
class StudentSpec:
    """A base model, inspected. `content` is the digest of its files; `max_length` in tokens.

    Attributes:
        previous: what training starts from instead of the base model.
    """

    location: str
    revision: str | None
    allow_pickle: bool
    max_length: int
    content: str
    previous: Previous | None = None


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
    base, tokenizer = _read(folder, _WHAT)
    with _as_student_error():
        usable = usable_length(config.max_length, tokenizer, skeleton(base, _WHAT), _WHAT)
    max_length = config.max_length or min(default_max_length, usable)
    location = str(folder) if Path(config.model).expanduser().is_dir() else config.model
    return StudentSpec(location, config.revision, config.allow_pickle, max_length, hub.content_hash(folder))


def inspect_previous(location: str, spec: StudentSpec) -> Previous:
    """Check a model folder that training is to start from; whether it is finished the caller knows.

    Args:
        location: folder, URI or hub id.
        spec: the base model, whose architecture it must have.

    Raises:
        StudentError: not found, of another architecture, or too short for the base's `max_length`.
    """
    folder = hub.fetch(location, None, False, StudentError, _PREVIOUS)
    hub.check_weights(folder, False, StudentError, _PREVIOUS)
    own, tokenizer = _read(folder, _PREVIOUS)
    base, _ = _read(hub.fetch(spec.location, spec.revision, spec.allow_pickle, StudentError, _WHAT), _WHAT)
    ours, theirs = own.to_dict(), base.to_dict()
    differing = [
        name
        for name in sorted({*ours, *theirs}, key=lambda name: (name != "model_type", name))
        if name not in _NO_ARCHITECTURE and "dropout" not in name and ours.get(name) != theirs.get(name)
    ]
    if differing:
        name = differing[0]
        raise StudentError(
            f"{_PREVIOUS}: the student in {locations.redact(location)!r} has {name} {ours.get(name)!r}, student.model has "
            f"{theirs.get(name)!r}: it is not of the same architecture; name the base model that it was made from, or set init: base"
        )
    with _as_student_error():
        usable_length(spec.max_length, tokenizer, skeleton(own, _PREVIOUS), _PREVIOUS)
    return Previous(location, _previous_content(folder, own))


def build_student(spec: StudentSpec, labels: list[str], seed: int, dropout: float | None) -> tuple[Any, Any]:
    """Model in float32 with a head over `labels`, and its tokenizer.

    What is fresh of the head is drawn from `seed`: the same on every worker.

    Args:
        dropout: rate of every dropout while training; None keeps the base's. The saved configuration keeps the
            base's rates in any case.

    Raises:
        StudentError: it cannot be loaded, its encoder has no weights, or it is not what was inspected.
    """
    quiet()
    made = (
        _from_base(spec, labels, seed)
        if spec.previous is None
        else _from_previous(spec.previous, labels, seed)
    )
    if dropout is not None:
        _set_dropout(made[0], dropout)
    return made


def _from_base(spec: StudentSpec, labels: list[str], seed: int) -> tuple[Any, Any]:
    folder = hub.fetch(spec.location, spec.revision, spec.allow_pickle, StudentError, _WHAT)
    if hub.content_hash(folder) != spec.content:
        raise StudentError(
            "student: the base model on this machine differs from the one the driver saw; "
            "pin a revision or give every node the same folder"
        )
    base, tokenizer = _read(folder, _WHAT)
    _name_labels(base, labels)
    torch.manual_seed(seed)
    model, info = _loaded(folder, base, spec.allow_pickle, _WHAT)
    _check_encoder(model, info)
    draw_head(model, len(labels), seed)
    return model, tokenizer


def _from_previous(previous: Previous, labels: list[str], seed: int) -> tuple[Any, Any]:
    """The earlier student with all that it learned; its head grown, by label name, to `labels`."""
    folder = hub.fetch(previous.location, None, False, StudentError, _PREVIOUS)
    config, tokenizer = _read(folder, _PREVIOUS)
    if _previous_content(folder, config) != previous.content:
        raise StudentError(
            f"{_PREVIOUS}: the student in {locations.redact(previous.location)!r} is not the one that the driver saw; "
            "give every node the same folder, and leave it as it is while a run starts from it"
        )
    before = _label_names(config)
    model, info = _loaded(folder, config, False, _PREVIOUS)
    absent = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if absent:
        raise StudentError(
            f"{_PREVIOUS}: {len(absent)} tensors are not in the weights (such as {absent[0]}); give a whole student"
        )
    grow_head(model, before, labels, seed)
    _name_labels(model.config, labels)
    model.num_labels = len(labels)
    return model, tokenizer


def _loaded(folder: Path, config: Any, allow_pickle: bool, what: str) -> tuple[Any, dict[str, Any]]:
    """Model in float32, and which tensors the files did not have."""
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, trust_remote_code=False,
            use_safetensors=None if allow_pickle else True, weights_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as problem:  # whatever files from outside make the library raise
        raise StudentError(f"{what}: cannot load {str(folder)!r}: {line(problem)}") from problem
    return model, info


def _name_labels(config: Any, labels: list[str]) -> None:
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    config.problem_type = "single_label_classification"


def _label_names(config: Any) -> list[str]:
    return [config.id2label[i] for i in range(config.num_labels)]


def _previous_content(folder: Path, config: Any) -> str:
    return fingerprint([hub.content_hash(folder), _label_names(config)])


@contextmanager
def _as_student_error() -> Iterator[None]:
    """The checks are shared with the teachers; who fails them is named by the kind of error."""
    try:
        yield
    except TeacherError as problem:
        raise StudentError(str(problem)) from problem


def _read(folder: Path, what: str) -> tuple[Any, Any]:
    """Configuration and tokenizer, agreed on a padding token: decoders often come without one."""
    with _as_student_error():
        check_no_code(folder, what)
        try:
            base = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as problem:  # whatever files from outside make the library raise
            raise StudentError(f"{what}: cannot read {str(folder)!r}: {line(problem)}") from problem
        tokenizer = load_tokenizer(folder, what)
        set_padding(tokenizer, base, what)
        _set_inputs(tokenizer, skeleton(base, what))
    return base, tokenizer


def _set_inputs(tokenizer: Any, model: Any) -> None:
    """Have the tokenizer make what the model takes, and the mask always: without it padding is read as text."""
    taken = signature(model.forward).parameters
    names = [name for name in tokenizer.model_input_names if name in taken]
    if "attention_mask" in taken and "attention_mask" not in names:
        names.append("attention_mask")
    if names != list(tokenizer.model_input_names):
        tokenizer.model_input_names = names


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


def _set_dropout(model: Any, rate: float) -> None:
    """Every dropout, also those that attention layers keep as a plain number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if isinstance(value, float) and "dropout" in name:
                setattr(module, name, rate)
