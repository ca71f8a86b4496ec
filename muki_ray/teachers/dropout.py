"""Monte-Carlo dropout for any Hugging Face classifier (MUKI eq. 4-5), without a copy of its code.

Knows Torch modules; knows no tokenizer, no files, no Ray. Where the dropout modules are is found by `sites`,
the hooks are in `fanout`.

`per_sample`: the k-th sample is the model under the k-th mask, the same for every row (`W^k` of eq. 4). One
mask per hidden dropout site, `[K+1, H]`, its row 0 all ones: the deterministic pass is sample 0. The K+1
samples run as one batch of (K+1)*B rows, sample-major. Where the model's layers can be found, rows are
repeated only at the first stochastic layer (`fan-out`), so what lies before runs once; otherwise the inputs
are repeated, which gives the same numbers for more work. Dropout on attention probabilities has no such form
and stays off.

`per_element`: classical dropout, a new mask for every element and forward, attention probabilities included.

Shapes: B rows of a batch, K samples, C_m labels, H hidden size.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import torch
from torch import nn

from muki_ray.errors import TeacherError
from muki_ray.teachers.fanout import fanned_out, masked
from muki_ray.teachers.sites import Inputs, Site, encoder_layers, find_sites

Layers = int | Literal["all"]
Mode = Literal["deterministic", "fan-out", "repeat", "per_element"]


class McDropout:
    """Runs a classifier K+1 times a row: once as it is, K times under dropout.

    Args:
        model: an `AutoModelForSequenceClassification`; put in eval mode, and its dropout rates are set.
        probe: a small tokenized batch of at least two rows of unequal length, used once to find the sites
            and to check the result.
        samples: K; 0 runs the deterministic pass only.
        masks, layers, rate: as in `config.DropoutConfig`.
        seed_key: what the masks' seeds derive from, such as (seed, teacher fingerprint).

    Attributes:
        mode: how the samples are run, see above.
        masks: per_sample only, of each stochastic site by name, `[K+1, H]`.

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
    ) -> None:
        self.model = model.eval()
        self.samples = samples
        self.seed_key = seed_key
        self.name = name
        self.mode: Mode = "deterministic"
        self.masks: dict[str, torch.Tensor] = {}
        self.stack = encoder_layers(model)
        if samples:
            self.first = self._first_layer(layers)
            self._set_rate(rate)
            if masks == "per_element":
                self.mode = "per_element"
                self.stochastic = self._stochastic_modules()
            else:
                self.mode = "repeat"
                self._prepare_masks(probe)
        self._check(probe)

    # -- set-up --------------------------------------------------------------------------------------

    def _first_layer(self, layers: Layers) -> int:
        """Position of the first stochastic layer; -1: the embeddings too."""
        if layers == "all":
            return -1
        if self.stack is None:
            raise TeacherError(
                f"teacher {self.name!r}: its layers are not a plain list, so dropout.layers: {layers} has no meaning; use layers: all"
            )
        if layers > len(self.stack):
            raise TeacherError(
                f"teacher {self.name!r} has {len(self.stack)} layers, got dropout.layers: {layers}; use fewer or all"
            )
        return len(self.stack) - layers

    def _set_rate(self, rate: float | None) -> None:
        dropouts = [m for m in self.model.modules() if isinstance(m, nn.Dropout)]
        if rate is not None:
            for module in dropouts:
                module.p = rate
        if not dropouts:
            raise _no_dropout(self.name, "it has no dropout modules", None)
        if not any(module.p > 0 for module in dropouts):
            raise _no_dropout(self.name, "its dropout rates are 0", "set method.dropout.rate (such as 0.1)")

    def _prepare_masks(self, probe: Inputs) -> None:
        watched = find_sites(self.model, self.stack, probe)
        self.sites = [site for site in watched.sites if site.layer >= self.first]
        if not self.sites:
            where = "its hidden states" if self.first < 0 else f"its hidden states from layer {self.first} on"
            raise _no_dropout(
                self.name, f"no dropout reaches {where}", "set method.dropout.rate (such as 0.1)"
            )
        self.feeding, self.batched = watched.feeding, watched.batched
        self.masks = {site.name: self._mask(site) for site in self.sites}

    def _mask(self, site: Site) -> torch.Tensor:
        """Inverted-dropout masks of one site, `[K+1, H]`, row 0 ones. Drawn on the CPU: the same on every device."""
        mask = torch.ones(self.samples + 1, site.width)
        keep = 1.0 - site.module.p
        for k in range(1, self.samples + 1):
            generator = torch.Generator().manual_seed(derived_seed(*self.seed_key, k, site.name))
            mask[k] = torch.bernoulli(torch.full((site.width,), keep), generator=generator) / keep
        parameter = next(self.model.parameters())
        return mask.to(device=parameter.device, dtype=parameter.dtype)

    def _stochastic_modules(self) -> list[nn.Module]:
        """Modules to put in train mode for classical dropout: everything, or the last layers and the head."""
        if self.first < 0:
            return list(self.model.modules())
        base: Any = self.model.base_model
        before = {*base.modules(), self.model}
        head = [module for module in self.model.modules() if module not in before]
        return head + [m for layer in list(self.stack or [])[self.first :] for m in layer.modules()]

    def _check(self, probe: Inputs) -> None:
        """Refuse NaN and samples that are all alike; prefer the fan-out where it gives what repeated inputs give."""
        logits = self.logits(probe, shard=0, batch=0)
        if not torch.isfinite(logits).all():
            raise TeacherError(
                f"teacher {self.name!r} answers NaN or infinity on a plain text; its weights or dtype are broken (try dtype: float32)"
            )
        if self.mode == "deterministic":
            return
        # at a tiny rate no unit may be dropped at all: then equal samples are right
        drawn = self.mode == "per_element" or any((mask == 0).any() for mask in self.masks.values())
        if drawn and torch.equal(logits[1:], logits[:1].expand_as(logits[1:])):
            raise TeacherError(
                f"teacher {self.name!r}: its {self.samples} Monte-Carlo samples are all equal, so dropout reaches nothing that matters; "
                "set method.dropout.layers: all, or method.score: entropy with method.samples: 0"
            )
        if self.mode == "repeat" and self._can_fan_out():
            self.mode = "fan-out" if self._agrees(probe, logits) else "repeat"

    def _can_fan_out(self) -> bool:
        """There are layers, and every site before them is the one that feeds them; else its mask would be lost."""
        before = [site.name for site in self.sites if site.layer < 0]
        return self.stack is not None and all(name == self.feeding for name in before)

    def _agrees(self, probe: Inputs, expected: torch.Tensor) -> bool:
        """Whether the fan-out answers like repeated inputs; not where a model looks at its inputs again later."""
        self.mode = "fan-out"
        try:
            fanned = self.logits(probe, shard=0, batch=0)
        except (RuntimeError, IndexError, ValueError, KeyError):
            return False
        exact = next(self.model.parameters()).dtype == torch.float32
        scale = float(expected.abs().max().clamp(min=1.0))
        return fanned.shape == expected.shape and torch.allclose(
            fanned, expected, rtol=0.0, atol=scale * (1e-4 if exact else 5e-2)
        )

    # -- running -------------------------------------------------------------------------------------

    def logits(self, inputs: Inputs, *, shard: int, batch: int) -> torch.Tensor:
        """Logits of the deterministic pass and the K samples, `float32 [K+1, B, C_m]`.

        Args:
            inputs: a tokenized batch, `[B, T]` each.
            shard, batch: where the batch stands; seeds classical masks, so that a retry draws the same.
        """
        with torch.inference_mode():
            if self.mode == "deterministic":
                return self._forward(inputs)[None]
            if self.mode == "per_element":
                return self._per_element(inputs, shard, batch)
            rows = inputs["input_ids"].shape[0]
            logits = self._fan_out(inputs, rows) if self.mode == "fan-out" else self._repeat(inputs)
            return logits.view(self.samples + 1, rows, -1)

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        logits: torch.Tensor = self.model(**inputs).logits
        return logits.float()

    def _repeat(self, inputs: Inputs) -> torch.Tensor:
        repeated = {k: v.repeat(self.samples + 1, *[1] * (v.dim() - 1)) for k, v in inputs.items()}
        with masked(self.sites, self.masks):
            return self._forward(repeated)

    def _fan_out(self, inputs: Inputs, rows: int) -> torch.Tensor:
        layers = list(self.stack or [])[max(self.first, 0) :]
        feeding = self.masks.get(self.feeding or "") if self.first < 0 else None
        later = [site for site in self.sites if site.layer >= 0]
        with masked(later, self.masks), fanned_out(layers, self.samples, rows, self.batched, feeding):
            return self._forward(inputs)

    def _per_element(self, inputs: Inputs, shard: int, batch: int) -> torch.Tensor:
        device = next(self.model.parameters()).device
        outputs = [self._forward(inputs)]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                for module in self.stochastic:
                    module.training = True
                for k in range(1, self.samples + 1):
                    _seed(device, derived_seed(*self.seed_key, shard, batch, k))
                    outputs.append(self._forward(inputs))
            finally:
                self.model.eval()
        return torch.stack(outputs)


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generator of this device only: `torch.manual_seed` would seed every other one, too."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _no_dropout(name: str, what: str, remedy: str | None) -> TeacherError:
    """The error for a teacher on which Monte-Carlo dropout would return K equal samples."""
    ways = f"{remedy}, or " if remedy else ""
    return TeacherError(
        f"teacher {name!r}: {what}, so Monte-Carlo dropout would return equal samples; {ways}use method.score: entropy with method.samples: 0"
    )
