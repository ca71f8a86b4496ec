"""Teachers: what can be said of one before any weight is loaded, and loading it.

`inspect` runs in the driver: it reads configuration, tokenizer and tensor headers, and refuses what would
give wrong evidence. `load` runs where the evidence is computed. Knows Transformers and Torch, not Ray.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from muki_ray import filesystem as locations
from muki_ray import hub
from muki_ray.config import Dtype, TeacherConfig
from muki_ray.errors import TeacherError
from muki_ray.labels import TeacherLabels, teacher_labels
from muki_ray.store import fingerprint
from muki_ray.teachers.adapters import Adapter, apply_adapter, fetch_adapter

# the papers cut at 128; longer texts cost quadratically, and most classifiers were trained on no more
MAX_LENGTH = 512


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher, inspected: everything needed to load it elsewhere, and to know whether it changed.

    Attributes:
        location: folder, URI or hub id; `revision` pins a hub id.
        labels: names in the union, in the order of the logits.
        max_length: tokens kept of a text.
        content: digest of weights, configuration and tokenizer.
        dtype: what the weights are run in; `auto` until `resolved`.
    """

    name: str
    location: str
    revision: str | None
    adapter: str | None
    allow_pickle: bool
    device: Literal["auto", "cpu", "cuda"]
    labels: TeacherLabels
    max_length: int
    content: str
    dtype: Dtype

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes the teacher's answers. Label names do not: evidence is by position."""
        return fingerprint([self.content, self.max_length, self.dtype])

    def resolved(self, on_gpu: bool) -> TeacherSpec:
        """The same teacher with its dtype decided."""
        return replace(self, dtype=resolve_dtype(self.dtype, on_gpu))


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in memory: `model` in eval mode on its device, and its own tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    max_length: int
    num_labels: int

    @property
    def input_names(self) -> set[str]:
        """Tokenizer outputs that the model takes."""
        return set(self.tokenizer.model_input_names)


def resolve_dtype(wanted: Dtype, on_gpu: bool) -> Literal["float32", "bfloat16", "float16"]:
    """What `auto` means: bfloat16 where the hardware multiplies it fast, else float32.

    Decided once in the driver, so that every actor of a run computes in the same type.
    """
    if wanted != "auto":
        return wanted
    if on_gpu:
        return (
            "bfloat16" if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False) else "float32"
        )
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"


def inspect(config: TeacherConfig) -> TeacherSpec:
    """Everything about a teacher that can be known without its weights in memory.

    Raises:
        TeacherError: it cannot be found; weights are missing or pickled; it is no single-label classifier;
            its head was never trained; its tokenizer is missing; max_length is more than it can take.
        LabelError: its labels cannot be joined by name.
    """
    what = f"teacher {config.name!r}"
    folder = hub.fetch(config.model, config.revision, config.allow_pickle, TeacherError, what)
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"{what}: no config.json in {str(folder)!r}; give the folder that save_pretrained wrote"
        )
    hub.check_weights(folder, config.allow_pickle, TeacherError, what)
    model_config = _read_config(folder, what)
    adapter = None
    if config.adapter is not None:
        adapter = fetch_adapter(config.adapter, config.allow_pickle, config.name)
        model_config.num_labels = adapter.num_labels
    _check_kind(model_config, what)
    if adapter is None:
        _check_head(folder, model_config, what)
    labels = teacher_labels(config.name, dict(model_config.id2label), config.labels, config.merge_labels)
    tokenizer = load_tokenizer(folder, what)
    max_length = _max_length(config.max_length, tokenizer, model_config, what)
    return TeacherSpec(
        name=config.name,
        location=_pinned_location(config.model, folder),
        revision=config.revision,
        adapter=config.adapter,
        allow_pickle=config.allow_pickle,
        device=config.device,
        labels=labels,
        max_length=max_length,
        content=_content(folder, adapter),
        dtype=config.dtype,
    )


def _content(folder: Path, adapter: Adapter | None) -> str:
    return fingerprint([hub.content_hash(folder), adapter.content_hash if adapter else None])


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
) -> LoadedClassifier:
    """Any sequence classifier, ready to answer.

    Args:
        dtype: `auto` is decided by the device.
        expect: content digest that it must have; other content is refused.

    Raises:
        TeacherError: it cannot be loaded, its head has no trained weights, or it is not what was inspected.
    """
    what = f"teacher {name!r}"
    folder = hub.fetch(location, revision, allow_pickle, TeacherError, what)
    model_config = _read_config(folder, what)
    tokenizer = load_tokenizer(folder, what)
    max_length = _max_length(max_length, tokenizer, model_config, what)
    fetched = None
    if adapter is not None:
        fetched = fetch_adapter(adapter, allow_pickle, name)
        model_config.num_labels = fetched.num_labels
    if expect is not None and _content(folder, fetched) != expect:
        raise TeacherError(
            f"{what}: the model on this machine differs from the one the driver saw; pin a revision or give every node the same folder"
        )
    quiet()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, config=model_config, dtype=getattr(torch, resolve_dtype(dtype, device != "cpu")), attn_implementation=_attention(model_config),
            use_safetensors=None if allow_pickle else True, weights_only=True, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=fetched is not None,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        raise TeacherError(f"{what}: cannot load {str(folder)!r}: {_line(problem)}") from problem
    if fetched is not None:
        model = apply_adapter(model, fetched, name)
    elif info["missing_keys"]:
        raise TeacherError(
            f"{what}: {len(info['missing_keys'])} tensors have no trained weights (such as {min(info['missing_keys'])}); "
            "give a fine-tuned classifier, not a base model"
        )
    _ensure_padding(tokenizer, model)
    return LoadedClassifier(
        name, model.eval().to(device), tokenizer, max_length, int(model.config.num_labels)
    )


def load_tokenizer(folder: Path, what: str) -> Any:
    """The model's own tokenizer; raises TeacherError when the folder has none."""
    quiet()
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as problem:
        raise TeacherError(
            f"{what}: no usable tokenizer in {str(folder)!r} ({_line(problem)}); save it beside the model"
        ) from problem


def quiet() -> None:
    """No progress bars and no advice on the terminal; errors still raise."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _read_config(folder: Path, what: str) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TeacherError(
            f"{what}: cannot read config.json in {str(folder)!r}: {_line(problem)}"
        ) from problem


def _attention(config: Any) -> str | None:
    """sdpa where the architecture has it, else what it has."""
    probe = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    return "sdpa" if probe is not None and getattr(probe, "_supports_sdpa", False) else None


def _check_kind(config: Any, what: str) -> None:
    """Only single-label classification can be integrated over a union."""
    if config.problem_type == "multi_label_classification":
        raise TeacherError(
            f"{what} is a multi-label classifier (problem_type multi_label_classification); only single-label classifiers can be merged"
        )
    if config.problem_type == "regression" or config.num_labels < 2:
        raise TeacherError(
            f"{what} is a regression model ({config.num_labels} output); only classifiers with at least 2 labels can be merged"
        )


def _check_head(folder: Path, config: Any, what: str) -> None:
    """The stored head exists and has one row per label; from tensor headers, no weights in memory."""
    try:
        shapes = hub.tensor_shapes(folder)
    except ValueError as problem:
        raise TeacherError(f"{what}: {problem}; download or save the model again") from problem
    if not shapes:
        return  # pickle weights, allowed by the user: checked when they are loaded
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, KeyError, TypeError) as problem:
        raise TeacherError(
            f"{what}: {config.model_type!r} is no sequence classifier that Transformers knows ({_line(problem)})"
        ) from problem
    prefix = model.base_model_prefix + "."
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            continue
        if name not in shapes:
            raise TeacherError(
                f"{what}: its classification head is not in the weights ({name} is missing); give a fine-tuned classifier, not a base model"
            )
        if shapes[name] != tuple(parameter.shape):
            raise TeacherError(
                f"{what}: {name} has shape {shapes[name]} in the weights but {tuple(parameter.shape)} by config.json; "
                f"mend id2label ({config.num_labels} labels)"
            )


def _max_length(wanted: int | None, tokenizer: Any, config: Any, what: str) -> int:
    """Tokens kept of a text: what the user says, at most what tokenizer and positions allow."""
    positions = getattr(config, "max_position_embeddings", None) or 10**9
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        positions -= (config.pad_token_id or 0) + 1  # their positions start after the padding index
    limit = min(tokenizer.model_max_length, positions)
    if wanted is not None and wanted > limit:
        raise TeacherError(f"{what} takes at most {limit} tokens, got max_length: {wanted}")
    least = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if wanted is not None and wanted < least:
        raise TeacherError(f"{what}: max_length {wanted} leaves no room for text; use at least {least}")
    return int(wanted or min(limit, MAX_LENGTH))


def _pinned_location(location: str, folder: Path) -> str:
    """Where other processes find the same model: absolute for folders, unchanged for URIs and hub ids."""
    if locations.scheme(location) or not Path(location).expanduser().is_dir():
        return location
    return str(folder)


def _ensure_padding(tokenizer: Any, model: Any) -> None:
    """Decoders often have no padding token; their classifiers need one to find each row's end."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
