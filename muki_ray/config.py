"""The configuration a user writes, validated; every default of the project is here or in `config_method.py`.

Three things must be set: `teachers`, `corpus`, `student` (and `output`, where the run folder goes).
Knows pydantic; loads no model, opens no data, touches no device. How the YAML text becomes a mapping, and a
problem one line, is in `config_input.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from muki_ray.config_input import first_problem, override, read_yaml, shown
from muki_ray.config_method import (
    CflMethod,
    Method,
    MukiMethod,
)
from muki_ray.config_section import Count, Dtype, Fraction, Gpus, ModelName, Positive, Section, filled
from muki_ray.errors import ConfigError
from muki_ray.uris import redact_all


class ActorResources(Section):
    """What one teacher's pool of actors takes from the cluster."""

    num_cpus: Positive | None = Field(
        default=None, description="CPUs per actor; default: planned from the cluster"
    )
    num_gpus: Gpus | None = Field(
        default=None,
        description="GPUs per actor; default: 1 where the cluster has GPUs, or the teacher asks for cuda; none with device: cpu",
    )
    accelerator_type: str | None = Field(default=None, description="Ray accelerator type, such as A100")
    min_actors: Count = 1
    max_actors: Count | None = Field(default=None, description="default: planned from the cluster")
    threads: Count | None = Field(
        default=None, description="CPU threads per actor; default: num_cpus, rounded"
    )

    @model_validator(mode="after")
    def _ordered(self) -> ActorResources:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors ({self.max_actors}) is below min_actors ({self.min_actors})")
        return self


def _keyed_by(names: str, example: str) -> BeforeValidator:
    """A check that a value maps text; pydantic would name a wrong key as if its value were wrong."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"must be a mapping such as {example}, got {shown(value)}")
        for key in value:
            if not isinstance(key, str):
                raise ValueError(
                    f"keys are {names}, as text, such as {example}; got the key {shown(key)}; quote it if it is one"
                )
        return value

    return BeforeValidator(check)


Renamed = Annotated[dict[str, str], _keyed_by("the model's own label names", "{LABEL_0: neg}")]
Classifiers = Annotated[dict[str, str], _keyed_by("names for the classifiers", "{old: org/old-model}")]


class TeacherConfig(Section):
    """A fine-tuned sequence classifier."""

    name: str = Field(description="how logs, metrics and pictures call it")
    model: ModelName = Field(description="hub id, folder or URI")
    revision: str | None = None
    labels: Renamed | None = Field(
        default=None,
        description="rename labels: {name in the model: name in the union}; what only says where it stands (LABEL_0, 0, class 1) must be in it",
    )
    merge_labels: bool = Field(default=False, description="allow two labels of this teacher to become one")
    max_length: Count | None = Field(
        default=None, description="tokens; default: what the tokenizer and model allow, at most 512"
    )
    dtype: Dtype = Field(default="auto", description="auto: bfloat16 where the hardware has it, else float32")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto: a GPU where the cluster has any; cuda: waits for one, or is refused",
    )
    adapter: str | None = Field(
        default=None, description="LoRA adapter on top of `model`: hub id or folder (needs peft)"
    )
    allow_pickle: bool = Field(
        default=False, description="accept weights in pickle files, which can run code when loaded"
    )
    resources: ActorResources = ActorResources()

    @model_validator(mode="after")
    def _on_one_device(self) -> TeacherConfig:
        gpus = self.resources.num_gpus
        if gpus is not None and self.device == ("cuda" if gpus == 0 else "cpu"):
            raise ValueError(
                f"device: {self.device} and resources.num_gpus: {gpus:g} contradict each other; leave one of them out"
            )
        return self

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
            raise ValueError(
                f"teacher name {name!r} must be 1-64 letters, digits, '_' or '-', "
                "starting with a letter or digit"
            )
        return name


def _as_pair(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[tuple[str, ...], BeforeValidator(_as_pair), Field(min_length=1, max_length=2)]
Path = Annotated[str, AfterValidator(filled("give files, a folder, a glob or a hub id"))]
Paths = Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)]
Format = Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "datasets"]


class TextSource(Section):
    """Text somewhere: files, folders, globs or a list of them, or a Hugging Face data set."""

    path: Paths
    format: Format = Field(
        default="auto", description="auto: by file name; 'datasets' for a hub id or a save_to_disk folder"
    )
    text: Columns = Field(default=("text",), description="text column, or [first, second] for pairs")
    split: str = Field(default="train", description="split of a Hugging Face data set")
    revision: str | None = Field(default=None, description="revision of a Hugging Face data set")

    @field_validator("text")
    @classmethod
    def _distinct(cls, text: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(text)) != len(text) or not all(text):
            raise ValueError(
                f"text columns must be named and distinct, got {list(text)}; name one, or two for pairs"
            )
        return text


class TestConfig(TextSource):
    """A labelled test set; only evaluation reads it."""

    __test__ = False  # not a pytest class
    split: str = Field(default="test", description="split of a Hugging Face data set")
    label: str = Field(default="label", description="column with label names of the union")
    compare: Classifiers = Field(
        default_factory=dict,
        description="further classifiers to evaluate on the test set: {name: folder or hub id}",
    )


class CorpusConfig(TextSource):
    """The unlabeled text."""

    shard_rows: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=2048, description="rows per shard: unit of work and retry"
    )
    limit: Count | None = Field(default=None, description="read at most so many rows")
    test: TestConfig | None = None


class StudentConfig(Section):
    """The model to train: any encoder or classifier; it gets a fresh head over the union."""

    model: ModelName = Field(description="hub id, folder or URI of the base model")
    revision: str | None = None
    init: Annotated[str, AfterValidator(filled("give base, previous, or a finished student's folder"))] = (
        Field(
            default="base",
            description="base: `model`; previous: the finished student of other teachers in `output`, if there is one; "
            "else folder, URI or hub id of a finished student. A student brings its labels, joined by name",
        )
    )
    max_length: Count | None = Field(
        default=None, description="tokens; default: the largest of the teachers'"
    )
    calibrate: bool = Field(
        default=False,
        description="divide the trained student's logits by the one temperature at which it comes closest to what the "
        "beliefs say of held-out rows; changes how sure it is, never what it answers. Better on average of the quality "
        "benchmark's suites, worse on some: see its tables",
    )
    allow_pickle: bool = False


class TrainingConfig(Section):
    """How the student is trained, by Ray Train."""

    start: Literal["after", "streaming"] = Field(
        default="after",
        description="after: all is scored; streaming: beside the scoring, from the first shards on, with epochs: 1. For a "
        "corpus so large that once is enough, in random order: what is learned from it comes from its first shards",
    )
    epochs: Count = 3
    checkpoint_steps: Count | None = Field(
        default=None,
        description="optimizer steps between two checkpoints within an epoch; default: 2,000 when streaming, else none but at its end",
    )
    batch_size: Count = Field(default=32, description="rows per optimizer step, over all workers")
    micro_batch_size: Count | None = Field(
        default=None, description="rows per forward on one worker; default: no accumulation"
    )
    learning_rate: Positive = 5e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="share of the steps")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    clip_norm: Positive = 1.0
    precision: Dtype = Field(default="auto", description="autocast; auto: bfloat16 where the hardware has it")
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="default: the base model's rates"
    )
    validation: Fraction = Field(
        default=0.05,
        description="share of the supervision held out to choose the checkpoint, no labels needed",
    )
    patience: Count | None = Field(
        default=2, description="stop after so many epochs without a better held-out KL"
    )
    seed: int = 0
    num_workers: Count = 1
    num_cpus: Positive | None = Field(
        default=None, description="CPUs per worker; default: planned from the cluster"
    )
    num_gpus: Gpus | None = Field(
        default=None, description="GPUs per worker; default: 1 where the cluster has GPUs"
    )
    accelerator_type: str | None = None
    max_failures: Annotated[int, Field(ge=0)] = Field(
        default=3, description="worker failures survived before giving up"
    )

    @model_validator(mode="after")
    def _reads_once(self) -> TrainingConfig:
        if self.start == "streaming" and self.epochs != 1:
            raise ValueError(
                f"start: streaming reads every row once, as it comes, so epochs must be 1, got {self.epochs}; "
                "set epochs: 1, or start: after"
            )
        return self

    @property
    def steps_per_checkpoint(self) -> int | None:
        """Optimizer steps after which a killed training goes on within an epoch; None: only after whole ones."""
        return self.checkpoint_steps or (2_000 if self.start == "streaming" else None)

    @model_validator(mode="after")
    def _divisible(self) -> TrainingConfig:
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of num_workers ({self.num_workers})"
            )
        return self


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = True
    uri: str | None = Field(
        default=None, description="default: MLFLOW_TRACKING_URI, else sqlite:///<output>/mlflow.db"
    )
    experiment: str = "muki_ray"
    run_name: str | None = Field(default=None, description="default: last part of `output`")
    log_model: bool = True


class IntegrateConfig(Section):
    """One run: teachers and unlabeled text in, one student out."""

    teachers: Annotated[list[TeacherConfig], Field(min_length=1)]
    corpus: CorpusConfig
    student: StudentConfig
    output: Annotated[str, AfterValidator(filled("give the folder that the run may write to"))] = Field(
        description="run folder: absolute path, path or URI"
    )
    method: Method = MukiMethod()
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> IntegrateConfig:
        names = [teacher.name for teacher in self.teachers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"teacher names must differ, got {twice[0]!r} more than once")
        if isinstance(self.method, CflMethod) and self.training.num_workers > 1:
            raise ValueError(
                "method cfl compares the rows of a batch with each other, so one worker must see them all, "
                f"got training.num_workers: {self.training.num_workers}; set it to 1"
            )
        return self


def parse_config(content: Any, overrides: Iterable[str] = ()) -> IntegrateConfig:
    """Validate a configuration that was read from YAML.

    Args:
        content: what YAML gave.
        overrides: `dotted.key=value`, the value in YAML; list items by index (`teachers.0.dtype=float32`).

    Raises:
        ConfigError: one line per run: the first thing that is wrong, where, and what to do.
    """
    if not isinstance(content, dict):
        raise ConfigError(
            "the configuration must be a mapping with teachers, corpus, student and output; "
            f"got {'nothing' if content is None else type(content).__name__}"
        )
    for text in overrides:
        content = override(content, text)
    try:
        return IntegrateConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from error


def load_config(path: str, overrides: Iterable[str] = ()) -> IntegrateConfig:
    """Read and validate a YAML file. Raises ConfigError with one line that says what to mend."""
    return parse_config(read_yaml(path), overrides)


def to_yaml(config: IntegrateConfig) -> str:
    """The resolved configuration, every default spelled out; URIs without their credentials."""
    return yaml.safe_dump(redact_all(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
