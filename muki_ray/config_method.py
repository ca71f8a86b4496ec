"""How teachers' answers become targets: the methods a user can name, and their defaults.

Knows pydantic and which scores there are; computes nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from muki_ray.config_section import Count, Fraction, Positive, Section
from muki_ray.uncertainty import SAMPLED, UNBOUNDED


def _as_layers(value: Any) -> Any:
    # checked here, because a union of types would report one problem per member
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be 'all' or a whole number of at least 1, got {value!r}")


ScoreName = Literal[
    "entropy", "msp", "max_logit", "energy", "mc_entropy", "mc_energy", "mutual_information", "mc_variance"
]  # the keys of `uncertainty.SCORES`
Layers = Annotated[Literal["all"] | int, BeforeValidator(_as_layers)]


# samples that `early_stop` lets every row draw between two looks at what has settled
SAMPLES_BETWEEN_LOOKS = 4
# temperature of the weights that scores give (the paper's)
_TAU = 0.2


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
        description="per_sample: a row draws no more samples once the standard error of its normalised entropy is below this, after every 4",
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
    embedding: bool = Field(
        default=True,
        description="where words say little for that, also ask what the student's base model makes of at most 20,000 rows",
    )
    integration: Literal["hard", "soft"] = "soft"
    tau: Positive | None = Field(
        default=None,
        description="temperature of the teachers' weights (soft); null: the beliefs of co-training as they are, 0.2 for scores",
    )
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1,
        description="share of every target that all teachers have evenly: what they say of rows that are not their own still teaches their labels",
    )
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
    def _scores_need_a_temperature(self) -> MukiMethod:
        # after all fields are read: `n` is a word for false, too
        if self.tau is None and not self.cotraining:
            object.__setattr__(self, "tau", _TAU)
        return self

    @model_validator(mode="after")
    def _possible(self) -> MukiMethod:
        if self.score in SAMPLED and self.samples < 2:
            raise ValueError(
                f"score {self.score!r} needs samples >= 2, got {self.samples}; "
                "use score: entropy for no dropout"
            )
        if self.dropout.early_stop is not None and self.samples <= SAMPLES_BETWEEN_LOOKS:
            raise ValueError(
                f"dropout.early_stop ({self.dropout.early_stop:g}) looks at rows after every {SAMPLES_BETWEEN_LOOKS} samples, "
                f"so with samples {self.samples} it stops none; set samples higher, such as 16, or leave early_stop out"
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
    """The paper's setting: classical dropout everywhere, K = 16, soft, tau 0.2, margin, raw weights, nothing smoothed."""

    kind: Literal["paper"] = "paper"  # type: ignore[assignment]
    samples: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=16, description="Monte-Carlo samples K; 0: deterministic pass only"
    )
    score: ScoreName = "mc_entropy"
    cotraining: bool = Field(default=False, description="see muki's cotraining")
    smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="see muki's smoothing")
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
    def embedding(self) -> Literal[False]:
        """And so no text is read."""
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
