"""Monte-Carlo dropout for any Hugging Face classifier (MUKI eq. 4-5), without a copy of its code.

Knows Torch modules and hooks; knows no tokenizer, no files, no Ray.

`per_sample`: the k-th sample is the model under the k-th mask, the same for every row (`W^k` of eq. 4). One
mask per hidden dropout site, `[K+1, 1, 1, H]`, its row 0 all ones: the deterministic pass is sample 0. The K+1
samples run as one batch of (K+1)*B rows, sample-major. Where the model's layers can be found, rows are
repeated only at the first stochastic layer (`fan-out`), so what lies before runs once; otherwise the inputs
are repeated, which gives the same numbers for more work. Dropout on attention probabilities has no such form
and stays off.

`per_element`: classical dropout, a new mask for every element and forward, attention probabilities included.

Shapes: B rows of a batch, K samples, C_m labels, T tokens, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from muki_ray.errors import TeacherError

Inputs = Mapping[str, torch.Tensor]


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def encoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The stack of encoder or decoder layers, or None where it is not one plain list (shared layers, say)."""
    config = getattr(model, "config", None)
    depth = getattr(config, "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return stacks[0] if len(stacks) == 1 else None


@dataclass(frozen=True)
class Site:
    """One dropout module on hidden states. `layer` is -1 before the layers, their count after them."""

    name: str
    module: nn.Dropout
    layer: int
    width: int


class McDropout:
    """Runs a classifier K+1 times a row: once as it is, K times under dropout.

    Args:
        model: an `AutoModelForSequenceClassification` in eval mode.
        probe: a small tokenized batch of at least two rows of unequal length, used once to find the sites
            and to check the result.
        samples: K; 0 runs the deterministic pass only.
        masks, layers, rate: as in `config.DropoutConfig`.
        seed_key: what the masks' seeds derive from, such as (seed, teacher fingerprint).

    Raises:
        TeacherError: the model has no dropout, or its samples do not differ.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Inputs,
        *,
        samples: int,
        masks: Literal["per_sample", "per_element"],
        layers: int | Literal["all"],
        rate: float | None,
        seed_key: tuple[object, ...],
        name: str,
    ) -> None:
        self.model = model.eval()
        self.samples = samples
        self.seed_key = seed_key
        self.name = name
        self.mode: Literal["deterministic", "fan-out", "repeat", "per_element"] = "deterministic"
        if samples == 0:
            return
        self.stack = encoder_layers(model)
        self.first = self._first_layer(layers)
        self._set_rate(rate)
        if masks == "per_element":
            self.mode = "per_element"
            self.stochastic = self._stochastic_modules()
        else:
            self.sites, self.embedding_site = self._find_sites(probe)
            self.masks = {site.name: self._mask(site) for site in self.sites}
            self.mode = "repeat"
        self._check(probe)

    # -- set-up --------------------------------------------------------------------------------------

    def _first_layer(self, layers: int | Literal["all"]) -> int:
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
        if not any(module.p > 0 for module in dropouts):
            raise no_dropout(self.name, has_modules=bool(dropouts))

    def _layer_of(self) -> dict[nn.Module, int]:
        if self.stack is None:
            return {}
        return {module: i for i, layer in enumerate(self.stack) for module in layer.modules()}

    def _find_sites(self, probe: Inputs) -> tuple[list[Site], str | None]:
        """Dropout modules that see hidden states `[B, T, H]` or `[B, H]`, found by watching one forward.

        Also the site, if any, whose output enters the first layer as it is: the fan-out applies its mask.
        """
        rows, width = probe["input_ids"].shape
        layer_of = self._layer_of()
        seen: dict[str, Site] = {}
        entered: list[torch.Tensor] = []
        produced: dict[str, torch.Tensor] = {}
        self.batched: set[Key] = set()
        passed = False
        handles = []

        def watch(name: str, module: nn.Dropout) -> Any:
            def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
                shape = tuple(output.shape)
                hidden = (len(shape) == 3 and shape[:2] == (rows, width)) or (
                    len(shape) == 2 and shape[0] == rows
                )
                if not hidden or module.p == 0:
                    return
                outside = len(self.stack) if self.stack is not None and passed else -1
                seen.setdefault(name, Site(name, module, layer_of.get(module, outside), shape[-1]))
                produced[name] = output

            return module.register_forward_hook(hook)

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal passed
            passed = True
            entered.append(args[0] if args else kwargs["hidden_states"])
            # which arguments carry the batch: asked here, where B is no other size, because a batch of one
            # row could not tell its own tensors from those that broadcast
            self.batched = {
                key for key, value in _tensors(args, kwargs) if value.dim() and value.shape[0] == rows
            }

        for name, module in self.model.named_modules():
            if isinstance(module, nn.Dropout):
                handles.append(watch(name, module))
        if self.stack is not None:
            handles.append(self.stack[0].register_forward_pre_hook(enter, with_kwargs=True))
        try:
            with torch.inference_mode():
                self.model(**probe)
        finally:
            for handle in handles:
                handle.remove()
        sites = [site for site in seen.values() if site.layer >= self.first]
        if not sites:
            raise no_dropout(self.name, has_modules=True)
        feeding = [n for n, out in produced.items() if entered and out.data_ptr() == entered[0].data_ptr()]
        return sites, (feeding[-1] if feeding else None)

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
        assert self.stack is not None
        base = getattr(self.model, getattr(self.model, "base_model_prefix", ""), None)
        before = set(base.modules()) if base is not None else set()
        head = [m for m in self.model.modules() if m not in before and m is not self.model]
        return head + [m for layer in list(self.stack)[self.first :] for m in layer.modules()]

    def _check(self, probe: Inputs) -> None:
        """Prefer the fan-out where it gives what repeated inputs give; refuse samples that are all alike."""
        logits = self.logits(probe, shard=0, batch=0)
        if self.samples > 1 and not (logits[1:].float().std(dim=0) > 0).any():
            raise TeacherError(
                f"teacher {self.name!r}: its {self.samples} Monte-Carlo samples are all equal, so dropout reaches nothing that matters; "
                "set method.dropout.layers: all, or method.score: entropy with method.samples: 0"
            )
        if self.mode != "repeat" or self.stack is None or not self._can_fan_out():
            return
        self.mode = "fan-out"
        try:
            fanned = self.logits(probe, shard=0, batch=0)
        except (RuntimeError, IndexError, ValueError):  # the model looks at its inputs again after the layers
            self.mode = "repeat"
            return
        tolerance = 1e-4 if logits.dtype == torch.float32 else 5e-2
        scale = float(logits.float().abs().max().clamp(min=1.0))
        if fanned.shape != logits.shape or float((fanned - logits).abs().max()) > tolerance * scale:
            self.mode = "repeat"

    def _can_fan_out(self) -> bool:
        """Every site before the layers must be the one that feeds them; else its mask would be lost."""
        return all(site.layer >= 0 or site.name == self.embedding_site for site in self.sites)

    # -- running -------------------------------------------------------------------------------------

    def logits(self, inputs: Inputs, *, shard: int, batch: int) -> torch.Tensor:
        """Logits of the deterministic pass and the K samples, `float32 [K+1, B, C_m]`.

        Args:
            inputs: a tokenized batch, `[B, T]` each.
            shard, batch: where the batch stands; seeds classical masks, so that a retry draws the same.
        """
        with torch.inference_mode():
            if self.mode == "deterministic":
                return self.model(**inputs).logits.float()[None]
            if self.mode == "per_element":
                return self._per_element(inputs, shard, batch)
            rows = inputs["input_ids"].shape[0]
            if self.mode == "repeat":
                inputs = {k: v.repeat(self.samples + 1, *[1] * (v.dim() - 1)) for k, v in inputs.items()}
            with self._masked(rows):
                logits = self.model(**inputs).logits
            return logits.float().view(self.samples + 1, rows, -1)

    def _per_element(self, inputs: Inputs, shard: int, batch: int) -> torch.Tensor:
        device = next(self.model.parameters()).device
        outputs = [self.model(**inputs).logits.float()]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for module in self.stochastic:
                module.training = True
            try:
                for k in range(1, self.samples + 1):
                    torch.manual_seed(derived_seed(*self.seed_key, shard, batch, k))
                    outputs.append(self.model(**inputs).logits.float())
            finally:
                self.model.eval()
        return torch.stack(outputs)

    @contextmanager
    def _masked(self, rows: int) -> Iterator[None]:
        """Hooks of one forward: repeat rows at the first stochastic layer, multiply masks at the sites."""
        K1 = self.samples + 1

        def multiply(mask: torch.Tensor) -> Any:
            def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
                return _apply(output, mask, K1)

            return hook

        fan_out = self.mode == "fan-out"
        handles = [
            site.module.register_forward_hook(multiply(self.masks[site.name]))
            for site in self.sites
            if not (fan_out and site.layer < 0)
        ]
        if fan_out:
            assert self.stack is not None
            start = max(self.first, 0)
            embedding = self.masks.get(self.embedding_site or "") if self.first < 0 else None
            repeated: dict[int, torch.Tensor] = {}
            for i, layer in enumerate(list(self.stack)[start:]):
                hook = _FanOut(K1, rows, self.batched, repeated, embedding if i == 0 else None)
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


Key = tuple[str | int, ...]


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Key, torch.Tensor]]:
    """Tensors among a layer's arguments, one level of tuples deep, each with where it stands."""
    items: list[tuple[str | int, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in items:
        if isinstance(value, torch.Tensor):
            yield (key,), value
        elif isinstance(value, tuple):
            yield from (((key, i), item) for i, item in enumerate(value) if isinstance(item, torch.Tensor))


class _FanOut:
    """Layer pre-hook: every batched tensor that still has B rows becomes (K+1)*B rows, sample-major."""

    def __init__(
        self,
        K1: int,
        rows: int,
        batched: set[Key],
        repeated: dict[int, torch.Tensor],
        mask: torch.Tensor | None,
    ) -> None:
        self.K1, self.rows, self.batched, self.repeated, self.mask = K1, rows, batched, repeated, mask

    def _repeat(self, key: Key, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._repeat((*key, i), item) for i, item in enumerate(value))
        if key not in self.batched or not isinstance(value, torch.Tensor) or value.shape[0] != self.rows:
            return value
        if id(value) not in self.repeated:  # the attention mask is one tensor for all layers: repeat it once
            self.repeated[id(value)] = value.repeat(self.K1, *[1] * (value.dim() - 1))
        return self.repeated[id(value)]

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args = tuple(self._repeat((i,), a) for i, a in enumerate(args))
        kwargs = {k: self._repeat((k,), v) for k, v in kwargs.items()}
        if self.mask is not None:
            if args:
                args = (_apply(args[0], self.mask, self.K1), *args[1:])
            else:
                kwargs["hidden_states"] = _apply(kwargs["hidden_states"], self.mask, self.K1)
        return args, kwargs


def _apply(hidden: torch.Tensor, mask: torch.Tensor, K1: int) -> torch.Tensor:
    """Multiply `[(K+1)*B, ..., H]`, sample-major, by `[K+1, H]`."""
    shape = hidden.shape
    ones = [1] * (hidden.dim() - 1)
    return (hidden.view(K1, -1, *shape[1:]) * mask.view(K1, *ones, shape[-1])).view(shape)


def no_dropout(name: str, *, has_modules: bool) -> TeacherError:
    """The error for a teacher on which Monte-Carlo dropout would return K equal samples."""
    what = "its dropout rates are 0" if has_modules else "it has no dropout on hidden states"
    remedy = "set method.dropout.rate (such as 0.1), or " if has_modules else ""
    return TeacherError(
        f"teacher {name!r}: {what}, so Monte-Carlo dropout would return equal samples; {remedy}use method.score: entropy with method.samples: 0"
    )
