"""Teachers: what can be said of one before any weight is loaded, and loading it.

`inspect` runs in the driver: it reads configuration, tokenizer and tensor headers, and refuses what would
give wrong evidence; `inspect_classifier` does so for one that is only evaluated. `load` runs where the evidence
is computed. Knows Transformers and Torch, not Ray.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from muki_ray import filesystem as locations
from muki_ray import hub
from muki_ray.config import TeacherConfig
from muki_ray.config_section import Dtype
from muki_ray.errors import TeacherError
from muki_ray.labels import teacher_labels
from muki_ray.store import fingerprint
from muki_ray.teachers.adapters import Adapter, apply_adapter, fetch_adapter, shape_head
from muki_ray.teachers.checks import (
    check_head,
    check_kind,
    check_no_code,
    line,
    set_padding,
    skeleton,
    usable_length,
)
from muki_ray.teachers.spec import TeacherSpec, resolve_dtype

# what a model's configuration says that changes no speed
_NAMES = {"id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "_name_or_path", "transformers_version"}  # fmt: skip


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in memory: `model` in eval mode on its device, and its own tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    max_length: int
    num_labels: int

    @cached_property
    def input_names(self) -> set[str]:
        """Tokenizer outputs that the model takes. The attention mask always, for rows are padded."""
        taken = signature(self.model.forward).parameters
        return {*self.tokenizer.model_input_names, "attention_mask"} & set(taken)


def inspect(config: TeacherConfig) -> TeacherSpec:
    """Everything about a teacher that can be known without its weights in memory.

    Raises:
        TeacherError: it cannot be found; weights are missing or pickled; it needs code of its own; it is no
            single-label classifier; its head was never trained; its tokenizer is missing or cannot pad;
            max_length is more than it can take.
        LabelError: its labels cannot be joined by name.
    """
    what = f"teacher {config.name!r}"
    folder = hub.fetch(config.model, config.revision, config.allow_pickle, TeacherError, what)
    _check_config_is_there(folder, what)
    hub.check_weights(folder, config.allow_pickle, TeacherError, what)
    model_config = _read_config(folder, what)
    adapter = None
    if config.adapter is not None:
        adapter = fetch_adapter(config.adapter, config.allow_pickle, config.name)
        shape_head(model_config, adapter)
    check_kind(model_config, what)
    empty = skeleton(model_config, what)
    shapes = _shapes(folder, what)
    if adapter is None and shapes:  # pickle weights, allowed by the user, are checked when they are loaded
        check_head(empty, shapes, what)
    labels = teacher_labels(config.name, dict(model_config.id2label), config.labels, config.merge_labels)
    tokenizer = load_tokenizer(folder, what)
    set_padding(tokenizer, model_config, what)
    return TeacherSpec(
        name=config.name,
        location=_pinned_location(config.model, folder),
        revision=config.revision,
        adapter=_pinned_location(config.adapter, adapter.folder) if config.adapter and adapter else None,
        allow_pickle=config.allow_pickle,
        device=config.device,
        labels=labels,
        max_length=usable_length(config.max_length, tokenizer, empty, what),
        content=_content(folder, adapter),
        kind=_kind(model_config, adapter),
        dtype=config.dtype,
    )


def inspect_classifier(location: str, what: str) -> tuple[str, ...]:
    """Check a classifier that is only evaluated, as far as that takes no weights in memory.

    Args:
        location: folder, URI or hub id.
        what: how messages call it.

    Returns:
        its labels, in the order of its logits.

    Raises:
        TeacherError: as `inspect`.
    """
    folder = hub.fetch(location, None, False, TeacherError, what)
    _check_config_is_there(folder, what)
    hub.check_weights(folder, False, TeacherError, what, can_allow=False)
    model_config = _read_config(folder, what)
    check_kind(model_config, what)
    empty = skeleton(model_config, what)
    check_head(empty, _shapes(folder, what), what)
    tokenizer = load_tokenizer(folder, what)
    set_padding(tokenizer, model_config, what)
    usable_length(None, tokenizer, empty, what)
    names = dict(model_config.id2label)
    if sorted(names) != list(range(len(names))):
        raise TeacherError(
            f"{what}: id2label has positions {sorted(names)[:8]}, not 0..{len(names) - 1}; mend its config.json"
        )
    return tuple(str(names[i]) for i in range(len(names)))


def _check_config_is_there(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"{what}: no config.json in {str(folder)!r}; give the folder that save_pretrained wrote"
        )


def _content(folder: Path, adapter: Adapter | None) -> str:
    return fingerprint([hub.content_hash(folder), adapter.content_hash if adapter else None])


def _kind(model_config: Any, adapter: Adapter | None) -> str:
    shape = json.loads(model_config.to_json_string(use_diff=False))
    return fingerprint([{name: shape[name] for name in sorted(set(shape) - _NAMES)}, adapter is not None])


def load(spec: TeacherSpec, device: str) -> LoadedClassifier:
    """Load a teacher on a device; the same checks as `inspect`, on the real tensors."""
    return load_classifier(
        spec.name, spec.location, revision=spec.revision, adapter=spec.adapter, allow_pickle=spec.allow_pickle,
        max_length=spec.max_length, dtype=spec.dtype, device=device, expect=spec.content,
    )  # fmt: skip


def load_classifier(
    name: str,
    location: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    allow_pickle: bool = False,
    max_length: int | None = None,
    dtype: Dtype = "float32",
    device: str = "cpu",
    expect: str | None = None,
    what: str | None = None,
) -> LoadedClassifier:
    """Any sequence classifier, ready to answer.

    Args:
        dtype: `auto` is decided by the device.
        expect: content digest that it must have; other content is refused.
        what: how messages call it; default: the teacher of that name.

    Raises:
        TeacherError: it cannot be loaded, its head has no trained weights, or it is not what was inspected.
    """
    what = what or f"teacher {name!r}"
    folder = hub.fetch(location, revision, allow_pickle, TeacherError, what)
    hub.check_weights(folder, allow_pickle, TeacherError, what)
    model_config = _read_config(folder, what)
    tokenizer = load_tokenizer(folder, what)
    set_padding(tokenizer, model_config, what)
    fetched = None
    if adapter is not None:
        fetched = fetch_adapter(adapter, allow_pickle, name)
        shape_head(model_config, fetched)
    if expect is not None and _content(folder, fetched) != expect:
        raise TeacherError(
            f"{what}: the model on this machine differs from the one the driver saw; pin a revision or give every node the same folder"
        )
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, config=model_config, dtype=getattr(torch, resolve_dtype(dtype, device != "cpu")), attn_implementation=_attention(model_config),
            use_safetensors=None if allow_pickle else True, weights_only=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=fetched is not None,
        )  # fmt: skip
    except Exception as problem:  # whatever files from outside make the library raise
        raise TeacherError(f"{what}: cannot load {str(folder)!r}: {line(problem)}") from problem
    untrained = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if fetched is not None:
        model = apply_adapter(model, fetched, untrained, name)
    elif untrained:
        raise TeacherError(
            f"{what}: {len(untrained)} tensors have no trained weights (such as {min(untrained)}); "
            "give a fine-tuned classifier, not a base model"
        )
    try:
        model = model.eval().to(device)
    except torch.OutOfMemoryError as problem:
        raise TeacherError(
            f"{what}: its weights do not fit the GPU's memory ({line(problem)}); use a larger GPU, device: cpu, "
            "or let fewer teachers share one (resources.num_gpus)"
        ) from problem
    except (
        AssertionError,
        RuntimeError,
    ) as problem:  # a Torch without CUDA asserts, a GPU without driver raises
        raise TeacherError(
            f"{what}: cannot use the device {device!r} ({line(problem)}); use device: cpu or auto"
        ) from problem
    return LoadedClassifier(
        name,
        model,
        tokenizer,
        usable_length(max_length, tokenizer, model, what),
        int(model.config.num_labels),
    )


def load_tokenizer(folder: Path, what: str) -> Any:
    """The model's own tokenizer; raises TeacherError when the folder has none."""
    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # whatever files from outside make the library raise
        raise TeacherError(
            f"{what}: no usable tokenizer in {str(folder)!r} ({line(problem)}); save it beside the model"
        ) from problem
    names = tokenizer.vocab_files_names.values()
    # without any of its files some tokenizers come with an empty vocabulary, to which every word is unknown
    if names and not any((folder / name).is_file() for name in (*names, "tokenizer.json", "tokenizer.model")):
        raise TeacherError(
            f"{what}: no tokenizer in {str(folder)!r} (none of {', '.join(sorted(names))}); save it beside the model"
        )
    return tokenizer


def quiet() -> None:
    """No progress bars and no advice on the terminal; errors still raise."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _read_config(folder: Path, what: str) -> Any:
    quiet()
    check_no_code(folder, what)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as problem:  # whatever files from outside make the library raise
        raise TeacherError(
            f"{what}: cannot read config.json in {str(folder)!r}: {line(problem)}"
        ) from problem


def _shapes(folder: Path, what: str) -> dict[str, tuple[int, ...]]:
    try:
        return hub.tensor_shapes(folder)
    except ValueError as problem:
        raise TeacherError(f"{what}: {problem}; download or save the model again") from problem


def _attention(config: Any) -> str | None:
    """sdpa where the architecture has it, else what it has."""
    probe = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    return "sdpa" if probe is not None and getattr(probe, "_supports_sdpa", False) else None


def _pinned_location(location: str, folder: Path) -> str:
    """Where other processes find the same model: absolute for folders, unchanged for URIs and hub ids."""
    if locations.scheme(location) or not Path(location).expanduser().is_dir():
        return location
    return str(folder)
