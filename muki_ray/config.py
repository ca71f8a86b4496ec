"""The configuration a user writes, validated; every default of the project is in this file.

Three things must be set: `teachers`, `corpus`, `student` (and `output`, where the run folder goes).
Knows pydantic; loads no model, opens no data, touches no device. How the YAML text becomes a mapping, and a
problem one line, is in `config_input.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from muki_ray.config_input import first_problem, override, read_yaml
from muki_ray.errors import ConfigError
from muki_ray.uncertainty import SAMPLED, UNBOUNDED
from muki_ray.uris import redact_all

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _schedulable(gpus: float) -> float:
    """Ray shares one GPU by fractions, but hands out several only whole."""
    if gpus > 1 and gpus != int(gpus):
        raise ValueError(f"num_gpus must be whole above 1, got {gpus}; use {int(gpus)} or {int(gpus) + 1}")
    return gpus


def _filled(remedy: str) -> Callable[[str], str]:
    """A check that a string is not blank; a blank path would mean the current directory."""

    def check(value: str) -> str:
        if not value.strip():
            raise ValueError(f"is empty, got {value!r}; {remedy}")
        return value

    return check


Gpus = Annotated[float, Field(ge=0), AfterValidator(_schedulable)]
ModelName = Annotated[str, AfterValidator(_filled("give a hub id, a folder or a URI"))]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value(cls, content: Any) -> Any:
        """YAML reads `yes` and `off` as truth values, and pydantic would count them as 1 and 0."""
        if isinstance(content, dict):
            for name, value in content.items():
                field = cls.model_fields.get(name)
                if isinstance(value, bool) and field is not None and field.annotation is not bool:
                    raise ValueError(
                        f"{name} must not be true or false, got {value!r}; give a number, or quote a word"
                    )
        return content


class ActorResources(Section):
    """What one teacher's pool of actors takes from the cluster."""

    num_cpus: Positive | None = Field(
        default=None, description="CPUs per actor; default: planned from the cluster"
    )
    num_gpus: Gpus | None = Field(
        default=None, description="GPUs per actor; default: 1 where the cluster has GPUs"
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


class TeacherConfig(Section):
    """A fine-tuned sequence classifier."""

    name: str = Field(description="how logs, metrics and pictures call it")
    model: ModelName = Field(description="hub id, folder or URI")
    revision: str | None = None
    labels: dict[str, str] | None = Field(
        default=None, description="rename labels: {name in the model: name in the union}"
    )
    merge_labels: bool = Field(default=False, description="allow two labels of this teacher to become one")
    max_length: Count | None = Field(
        default=None, description="tokens; default: what the tokenizer and model allow, at most 512"
    )
    dtype: Dtype = Field(default="auto", description="auto: bfloat16 where the hardware has it, else float32")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    adapter: str | None = Field(
        default=None, description="LoRA adapter on top of `model`: hub id or folder (needs peft)"
    )
    allow_pickle: bool = Field(
        default=False, description="accept weights in pickle files, which can run code when loaded"
    )
    resources: ActorResources = ActorResources()

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
Path = Annotated[str, AfterValidator(_filled("give files, a folder, a glob or a hub id"))]
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
    compare: dict[str, str] = Field(
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


def _as_layers(value: Any) -> Any:
    # checked here, because a union of types would report one problem per member
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be 'all' or a whole number of at least 1, got {value!r}")


ScoreName = Literal[
    "entropy", "msp", "max_logit", "energy", "mc_entropy", "mc_energy", "mutual_information", "mc_variance"
]  # the keys of `uncertainty.SCORES`
Layers = Annotated[Literal["all"] | int, BeforeValidator(_as_layers)]


class DropoutConfig(Section):
    """Monte-Carlo dropout (MUKI eq. 4-5)."""

    masks: Literal["per_sample", "per_element"] = Field(
        default="per_sample",
        description="per_sample: the k-th masked weights, shared by all rows; per_element: classical",
    )
    layers: Layers = Field(default="all", description="dropout only in the last so many layers and the head")
    rate: Fraction | None = Field(
        default=0.2,
        description="of every dropout; null: each teacher's own rates. Twice the usual 0.1 says more with few samples",
    )
    early_stop: Positive | None = Field(
        default=None,
        description="per_sample: a row draws no more samples once the standard error of its normalised entropy is below this",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _stops_where_it_can(self) -> DropoutConfig:
        if self.early_stop is not None and self.masks == "per_element":
            raise ValueError(
                f"early_stop ({self.early_stop:g}) works with masks: per_sample only; leave one of them out"
            )
        return self


class MukiMethod(Section):
    """Uncertainty-aware integration (MUKI section 2.2.2)."""

    kind: Literal["muki"] = "muki"
    samples: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=4, description="Monte-Carlo samples K; 0: deterministic pass only"
    )
    score: ScoreName = "mutual_information"
    standardise: Literal["none", "zscore", "quantile", "owner"] = Field(
        default="none",
        description="bring scores to one scale, learned from the corpus: see muki_ray/standardisation.py",
    )
    cotraining: bool = Field(
        default=True,
        description="learn from all scores and from the texts which teacher knows which rows: see muki_ray/cotraining.py",
    )
    integration: Literal["hard", "soft"] = "soft"
    tau: Positive = Field(default=0.2, description="temperature of the teachers' weights (soft)")
    margin: bool = Field(
        default=True,
        description="weight rows by the gap of the two best scores; of the teachers' weights where scores have no bounds",
    )
    abstain: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="share of the corpus that no teacher knows: as many rows, those on which no teacher's score is high, count nothing",
    )
    temperature: Positive = Field(default=1.0, description="temperature of the teachers' probabilities")
    weights: Literal["raw", "normalize"] = Field(
        default="normalize",
        description="normalize: divide by the corpus mean, so that the margin does not change the step size",
    )
    dropout: DropoutConfig = DropoutConfig()

    @model_validator(mode="after")
    def _possible(self) -> MukiMethod:
        if self.score in SAMPLED and self.samples < 2:
            raise ValueError(
                f"score {self.score!r} needs samples >= 2, got {self.samples}; "
                "use score: entropy for no dropout"
            )
        return self

    @property
    def bounded(self) -> bool:
        """Whether the scores that teachers are compared by lie in [0, 1]."""
        if self.cotraining:  # they are probabilities
            return True
        if self.standardise == "none":
            return self.score not in UNBOUNDED
        return self.standardise == "quantile"


class PaperDropout(DropoutConfig):
    """Dropout as in the paper: setting its rate or seed leaves the classical masks in place."""

    masks: Literal["per_sample", "per_element"] = Field(
        default="per_element", description="see muki's dropout"
    )
    rate: Fraction | None = Field(default=None, description="default: each teacher's own rates")


class PaperMethod(MukiMethod):
    """The paper's setting: classical dropout everywhere, K = 16, soft, tau 0.2, margin, raw weights."""

    kind: Literal["paper"] = "paper"  # type: ignore[assignment]
    samples: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=16, description="Monte-Carlo samples K; 0: deterministic pass only"
    )
    score: ScoreName = "mc_entropy"
    cotraining: bool = Field(default=False, description="see muki's cotraining")
    weights: Literal["raw", "normalize"] = "raw"
    dropout: PaperDropout = PaperDropout()


class BaselineMethod(Section):
    """What the baselines share: one pass of each teacher without dropout, and every row counts 1."""

    temperature: Positive = Field(
        default=1.0, description="of the teachers' and the student's probabilities alike"
    )

    @property
    def samples(self) -> int:
        """No Monte-Carlo samples."""
        return 0

    @property
    def dropout(self) -> DropoutConfig:
        """Without samples it changes nothing."""
        return DropoutConfig()

    @property
    def score(self) -> Literal["entropy"]:
        """What the report shows of each teacher; no target depends on it."""
        return "entropy"

    @property
    def standardise(self) -> Literal["none"]:
        """That score is shown as it is."""
        return "none"

    @property
    def abstain(self) -> float:
        """Every row counts."""
        return 0.0

    @property
    def cotraining(self) -> Literal[False]:
        """No teacher is chosen."""
        return False

    @property
    def weights(self) -> Literal["raw"]:
        """All are 1."""
        return "raw"


class VanillaKdMethod(BaselineMethod):
    """Plain distillation: softmax over all teachers' logits side by side."""

    kind: Literal["vanilla_kd"] = "vanilla_kd"


class UhcMethod(BaselineMethod):
    """Unifying heterogeneous classifiers: the student agrees with each teacher within that teacher's labels."""

    kind: Literal["uhc"] = "uhc"


class FeatureMethod(BaselineMethod):
    """Vanilla distillation, and the student's features led by those of the teachers, who run beside it."""

    head_learning_rate: Positive = Field(
        default=1e-3,
        description="of the projections that are trained beside the student and then thrown away",
    )


class DfaMethod(FeatureMethod):
    """Direct feature amalgamation: layer by layer, all teachers' features compressed into the student's."""

    kind: Literal["dfa"] = "dfa"


class CflMethod(FeatureMethod):
    """Common feature learning: last layers meet in a space that all share, compared by MMD."""

    kind: Literal["cfl"] = "cfl"
    width: Count | None = Field(
        default=None, description="of the common space; default: a quarter of the student's hidden size"
    )


AnyMethod = MukiMethod | BaselineMethod


def _as_kind(value: Any) -> Any:
    """`method: paper` is short for `method: {kind: paper}`; `kind` may be left out for muki."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "muki", **value} if isinstance(value, dict) else value


Method = Annotated[
    Annotated[
        MukiMethod | PaperMethod | VanillaKdMethod | UhcMethod | DfaMethod | CflMethod,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_as_kind),
]


class StudentConfig(Section):
    """The model to train: any encoder or classifier; it gets a fresh head over the union."""

    model: ModelName = Field(description="hub id, folder or URI of the base model")
    revision: str | None = None
    max_length: Count | None = Field(
        default=None, description="tokens; default: the largest of the teachers'"
    )
    allow_pickle: bool = False


class TrainingConfig(Section):
    """How the student is trained, by Ray Train."""

    epochs: Count = 3
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
    output: Annotated[str, AfterValidator(_filled("give the folder that the run may write to"))] = Field(
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
