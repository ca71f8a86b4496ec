"""Monte-Carlo dropout for any Hugging Face classifier (MUKI eq. 4-5), without a copy of its code.

`per_sample`: the k-th sample is the model under the k-th mask, the same for every row (`W^k` of eq. 4). One mask per
hidden dropout site, `[K+1, H]`, its row 0 all ones: the deterministic pass is sample 0. The forward pass is captured
as a graph and compiled (`capture`, `sites`, `reading`, `program`): what comes before the first stochastic site runs
once, the last layer runs for the token that the head reads, and samples are drawn in groups. A model that cannot be
captured runs whole for every sample, with the same masks (`hooks`). Dropout on attention probabilities has no such
form and stays off.

`per_element`: classical dropout, a new mask for every element and forward, attention probabilities included
(`classical`).

Knows Torch modules; knows no tokenizer, no files, no Ray.

Shapes: B rows of a batch, T tokens, K samples, C_m labels, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from muki_ray.config_method import SAMPLES_BETWEEN_LOOKS as GROUP
from muki_ray.errors import TeacherError
from muki_ray.teachers.capture import Captured, UncapturableError
from muki_ray.teachers.capture_cache import capture_once
from muki_ray.teachers.classical import Classical
from muki_ray.teachers.fanout import FanOut
from muki_ray.teachers.hooks import HookSite, Inputs, Repeated, watch_sites
from muki_ray.teachers.masks import balanced_masks
from muki_ray.teachers.program import compile_program
from muki_ray.teachers.refusals import no_dropout
from muki_ray.teachers.seeds import derived_seed
from muki_ray.teachers.settling import unsettled
from muki_ray.teachers.sites import Site, find_sites

Layers = int | Literal["all"]
Mode = Literal["fan-out", "repeat", "per_element"]


@dataclass(frozen=True)
class Samples:
    """A batch's answers.

    Attributes:
        logits: the deterministic pass and the K samples, `float32 [K+1, B, C_m]`; NaN where none was drawn.
        drawn: samples of each row, `int64 [B]`; less than K for rows that settled early.
    """

    logits: torch.Tensor
    drawn: torch.Tensor


class McDropout:
    """Runs a classifier K+1 times a row: once as it is, K times under dropout.

    Args:
        model: an `AutoModelForSequenceClassification`; put in eval mode.
        probe: a small tokenized batch of at least two rows of unequal length, used to find the sites and to
            check the result.
        samples: K; 0 runs the deterministic pass only.
        masks, layers, rate, early_stop: as in `config_method.DropoutConfig`.
        seed_key: what the masks' seeds derive from, such as (seed, teacher fingerprint).
        token_budget: tokens of one forward of sampled layers, rows and samples counted; None: all at once.

    Attributes:
        token_budget: as given; may be lowered between batches.
        mode: how the samples are run, see above.
        masks: per_sample only, of each stochastic site by name, `[K+1, H]`.
        uncaptured: why the model runs unmodified; None where it was captured.

    Raises:
        TeacherError: the model has no dropout, its samples do not differ, or it answers NaN.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Inputs,
        *,
        samples: int,
        masks: Literal["per_sample", "per_element"],
        layers: Layers,
        rate: float | None,
        seed_key: tuple[object, ...],
        name: str,
        early_stop: float | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.samples, self.early_stop, self.token_budget = samples, early_stop, token_budget
        self.seed_key, self.name = seed_key, name
        self.masks: dict[str, torch.Tensor] = {}
        self.depth: int | None = getattr(getattr(model, "config", None), "num_hidden_layers", None)
        self.uncaptured: str | None = None
        self.mode: Mode = "fan-out"
        self.runner: Any  # FanOut or Repeated: two that are used alike
        if samples and masks == "per_element":
            self.mode = "per_element"
            self.classical = Classical(model, probe, self._captured(probe), layers, rate, name)
        else:
            self.runner = self._prepared(probe, layers, rate)
        self._check(probe)

    # -- set-up --------------------------------------------------------------------------------------

    def _captured(self, probe: Inputs) -> Captured | None:
        try:
            return capture_once(self.model, probe)
        except UncapturableError as problem:
            self.uncaptured = str(problem)
            return None

    def _prepared(self, probe: Inputs, layers: Layers, rate: float | None) -> FanOut | Repeated:
        """Sites, masks, and what runs them: the compiled program where it answers like the unmodified model."""
        hooked, known = watch_sites(self.model, self.depth, rate, probe)
        captured = self._captured(probe)
        if captured is not None:
            sites, known = find_sites(captured, self.depth, rate)
            chosen = self._chosen(sites, known, layers, rate)
            self.masks = {site.name: self._mask(site) for site in chosen}
            try:
                runner = FanOut(compile_program(captured, chosen), self.masks)
                if self._agrees(runner, hooked, probe):
                    return runner
                self.uncaptured = "its captured form answers otherwise"
            except UncapturableError as problem:
                self.uncaptured = str(problem)
        self.mode = "repeat"
        kept = self._chosen(hooked, known, layers, rate)
        self.masks = {site.name: self._mask(site) for site in kept}
        return Repeated(self.model, kept, self.masks)

    def _chosen(self, sites: Sequence[Any], known: bool, layers: Layers, rate: float | None) -> list[Any]:
        """The stochastic sites: all, or those of the last layers and the head."""
        if not self.samples:
            return []
        first = first_layer(self.name, self.depth if known else None, layers)
        kept = [site for site in sites if site.layer >= first]
        if not kept:
            where = "" if first < 0 else f" from layer {first} on"
            raise no_dropout(
                self.name,
                f"no dropout reaches its hidden states{where}",
                "set method.dropout.rate (such as 0.1)" if rate is None else None,
            )
        return kept

    def _mask(self, site: Site | HookSite) -> torch.Tensor:
        """Masks of one site, `[K+1, H]`, row 0 ones."""
        ones = torch.ones(1, site.width)
        drawn = balanced_masks(self.samples, site.width, site.rate, derived_seed(*self.seed_key, site.name))
        parameter = next(self.model.parameters())
        return torch.cat([ones, drawn]).to(device=parameter.device, dtype=parameter.dtype)

    def _agrees(self, runner: FanOut, hooked: Sequence[HookSite], probe: Inputs) -> bool:
        """Whether a program answers like the unmodified model, under the same masks where hooks can set them."""
        comparable = set(self.masks) <= {site.name for site in hooked}
        masks = self.masks if comparable else {}
        reference = Repeated(self.model, hooked, masks)
        last = self.samples + 1 if comparable else 1
        with torch.inference_mode():
            expected = reference.logits(probe, 0, last, None).float()
            got = runner.logits(runner.start(probe), 0, last, None).float()
        exact = next(self.model.parameters()).dtype == torch.float32
        scale = float(expected.abs().nan_to_num().max().clamp(min=1.0))
        tolerance = scale * (1e-4 if exact else 5e-2)
        return torch.allclose(got, expected, rtol=0.0, atol=tolerance, equal_nan=True)

    def _check(self, probe: Inputs) -> None:
        """Refuse NaN, and samples that are all alike."""
        # of an early stop, what every row gets
        logits = self.logits(probe, shard=0, batch=0)[: 1 + min(self.samples, GROUP)]
        if not torch.isfinite(logits).all():
            raise TeacherError(
                f"teacher {self.name!r} answers NaN or infinity on a plain text; its weights or dtype are broken (try dtype: float32)"
            )
        # at a tiny rate no unit may be dropped at all: then equal samples are right
        drawn = self.mode == "per_element" or any((mask == 0).any() for mask in self.masks.values())
        if self.samples and drawn and torch.equal(logits[1:], logits[:1].expand_as(logits[1:])):
            raise TeacherError(
                f"teacher {self.name!r}: its {self.samples} Monte-Carlo samples are all equal, so dropout reaches nothing that matters; "
                "set method.dropout.layers: all, or method.score: entropy with method.samples: 0"
            )

    # -- running -------------------------------------------------------------------------------------

    def logits(self, inputs: Inputs, *, shard: int, batch: int) -> torch.Tensor:
        """Logits of the deterministic pass and the K samples, see `Samples`."""
        return self.run(inputs, shard=shard, batch=batch).logits

    def run(self, inputs: Inputs, *, shard: int, batch: int) -> Samples:
        """Answer a batch.

        Args:
            inputs: a tokenized batch, `[B, T]` each.
            shard, batch: where the batch stands; seeds classical masks, so that a retry draws the same.
        """
        with torch.inference_mode():
            if self.mode == "per_element":
                logits = self.classical.logits(inputs, self.samples, (*self.seed_key, shard, batch))
                return Samples(logits, logits.new_full(logits.shape[1:2], self.samples, dtype=torch.int64))
            return self._in_groups(inputs)

    def _in_groups(self, inputs: Inputs) -> Samples:
        """Draw samples in groups that fit the budget; rows whose score has settled leave after every `GROUP`.

        When they may leave does not depend on the budget, so that a row's samples do not depend on its batch.
        """
        rows, tokens = inputs["input_ids"].shape
        shared = self.runner.start(inputs)
        total = self.samples + 1
        size = self._group(rows, tokens)
        logits: torch.Tensor | None = None
        drawn = torch.zeros(rows, dtype=torch.int64, device=inputs["input_ids"].device)
        active: torch.Tensor | None = None  # None: all rows
        first = 0
        while first < total:
            last = min(total, first + size)
            if self.early_stop is not None:
                last = min(last, 1 + GROUP * (1 + max(0, first - 1) // GROUP))
            got = self.runner.logits(shared, first, last, active).float()
            if logits is None:
                logits = got.new_full((total, *(rows, got.shape[-1])), torch.nan)
            if active is None:
                logits[first:last] = got
                drawn[:] = last - 1
            else:
                logits[first:last, active] = got
                drawn[active] = last - 1
            first = last
            if self.early_stop is not None and 1 < first < total and (first - 1) % GROUP == 0:
                undecided = unsettled(logits[1:first], self.early_stop)
                active = undecided.nonzero()[:, 0]
                if not len(active):
                    break
        assert logits is not None
        return Samples(logits, drawn)

    def _group(self, rows: int, tokens: int) -> int:
        """Samples that are run together."""
        most = self.samples + 1
        if self.token_budget is not None:
            most = min(most, self.token_budget // (rows * self._sampled_tokens(tokens)))
        return max(1, most)

    def _sampled_tokens(self, tokens: int) -> int:
        """Tokens of a row that the sampled layers see."""
        return tokens if self.runner.widened else 1

    def largest_forward(self, rows: int, tokens: int) -> int:
        """Tokens of the largest forward that a batch of `rows` times `tokens` takes, samples counted."""
        if self.mode == "per_element":
            return rows * tokens
        return rows * max(tokens, self._group(rows, tokens) * self._sampled_tokens(tokens))


def first_layer(name: str, depth: int | None, layers: Layers) -> int:
    """Position of the first stochastic layer; -1: the embeddings too.

    Args:
        depth: number of layers; None where they cannot be told apart.

    Raises:
        TeacherError: there are not that many.
    """
    if layers == "all":
        return -1
    if depth is None:
        raise TeacherError(
            f"teacher {name!r}: its layers cannot be told apart, so dropout.layers: {layers} has no meaning; use layers: all"
        )
    if layers > depth:
        raise TeacherError(
            f"teacher {name!r} has {depth} layers, got dropout.layers: {layers}; use fewer or all"
        )
    return depth - layers
