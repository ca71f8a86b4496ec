"""Features: what each layer of a model makes of a row, and teachers that give them beside the student's training.

DFA and CFL compare hidden states of student and teachers. The releases compare them token by token, which needs one
tokenizer for all. Here every model has its own, so what is compared is the row: the mean of a layer's hidden states
over the row's tokens, special tokens counted, padding not. Knows Torch and Transformers; knows no loss, no optimizer.

A teacher says the same of a text in every epoch, so each is read once, as far as memory goes (`FeatureReader`).

Shapes: B rows of a batch, n of them that are read, T tokens, H_l width of layer l, W those of all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from muki_ray.errors import ConfigError
from muki_ray.teachers.loading import LoadedClassifier

# bytes of features that a worker keeps: of 14,000 texts for six layers of 768 and four teachers
_ROOM = 2**30
# of a text and its place in the memory, about
_BYTES_PER_TEXT = 400


def pooled_layers(answer: Any, mask: torch.Tensor, what: str) -> list[torch.Tensor]:
    """Mean over the tokens of every layer's hidden states: per layer `float32 [B, H_l]`, embeddings not among them.

    Args:
        answer: of a model called with `output_hidden_states=True`.
        mask: `[B, T]`, 1 for a token, 0 for padding.
        what: whose answer it is, for the message.

    Raises:
        ConfigError: the model has no hidden state for every token.
    """
    hidden = getattr(answer, "hidden_states", None) or ()
    if len(hidden) < 2 or any(h.dim() != 3 or h.shape[:2] != mask.shape for h in hidden):
        raise ConfigError(
            f"{what} gives no hidden states with one vector per token, which methods dfa and cfl compare; "
            "use another model, or method vanilla_kd, which compares answers only"
        )
    share = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1)).float().unsqueeze(-1)
    return [(h.float() * share).sum(dim=1) for h in hidden[1:]]


@torch.no_grad()
def layer_widths(model: torch.nn.Module, probe: Mapping[str, torch.Tensor], what: str) -> list[int]:
    """Width of every layer, in order. `probe` is a tokenized batch on the model's device."""
    training = model.training
    answer = model.eval()(**probe, output_hidden_states=True)
    model.train(training)
    return [layer.shape[1] for layer in pooled_layers(answer, _mask(probe), what)]


def _mask(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Which tokens count; where the tokenizer gives no mask, all."""
    ids = inputs["input_ids"]
    return inputs.get("attention_mask", torch.ones_like(ids))


class FeatureTeacher:
    """A teacher that reads the student's batches: frozen, in eval mode, with its own tokenizer and in its own type."""

    def __init__(self, classifier: LoadedClassifier) -> None:
        self.classifier = classifier
        self.what = f"teacher {classifier.name!r}"
        self.model = classifier.model.eval().requires_grad_(False)
        self.device = next(self.model.parameters()).device

    def widths(self) -> list[int]:
        """Width of every layer, in order."""
        probe = self.tokenize(["one short text", "another text that is somewhat longer"], None)
        return layer_widths(self.model, _placed(probe, self.device), self.what)

    def tokenize(self, texts: list[str], pairs: list[str] | None) -> dict[str, torch.Tensor]:
        """A padded batch, on the CPU; every tensor `[B, T]`."""
        tokenizer = self.classifier.tokenizer
        rows = tokenizer(
            texts, pairs, truncation=True, max_length=self.classifier.max_length, return_attention_mask=True
        )
        rows = {name: values for name, values in rows.items() if name in self.classifier.input_names}
        return dict(tokenizer.pad(rows, padding="longest", return_tensors="pt"))

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """Features of the rows, per layer `float32 [B, H_l]`, without gradient."""
        placed = _placed(inputs, self.device)
        answer = self.model(**placed, output_hidden_states=True)
        return pooled_layers(answer, _mask(placed), self.what)


@dataclass(frozen=True)
class Reading:
    """What the features of a batch are made of.

    Attributes:
        texts: first and second texts, `[B]`.
        known, features: rows whose features are kept, and these, `float32 [B - n, W]`.
        unknown: the other rows, `[n]`.
        tokens: of those, padded, per teacher; empty where there are none.
    """

    texts: list[tuple[str, str | None]]
    known: list[int]
    features: torch.Tensor
    unknown: list[int]
    tokens: list[dict[str, torch.Tensor]]

    def pinned(self) -> Reading:
        """The same, where a GPU copies it while it works."""
        tokens = [{name: values.pin_memory() for name, values in one.items()} for one in self.tokens]
        return Reading(self.texts, self.known, self.features.pin_memory(), self.unknown, tokens)


class FeatureReader:
    """Teachers who read a corpus again and again: features of a text are kept until there is no more room.

    They are rounded as in the batch in which it was first read, so that a training which was resumed ends as an unbroken
    one does but for the last digits.

    Args:
        teachers: on one device.
        layers: of each teacher, those that somebody asks for, counted from 0.
        room: bytes.
    """

    def __init__(
        self, teachers: Sequence[FeatureTeacher], layers: Sequence[Sequence[int]], room: int = _ROOM
    ) -> None:
        self.teachers, self.layers = list(teachers), [list(own) for own in layers]
        self.depths = [one.widths() for one in self.teachers]
        self.widths = [w[layer] for w, own in zip(self.depths, self.layers, strict=True) for layer in own]
        self._left = room
        self._kept: dict[tuple[str, str | None], torch.Tensor] = {}

    def prepare(self, texts: list[str], pairs: list[str] | None) -> Reading:
        """Look up a batch, and tokenize what has to be read. May be called on a thread that reads ahead."""
        keys = [(text, None if pairs is None else pairs[i]) for i, text in enumerate(texts)]
        rows = [self._kept.get(key) for key in keys]
        known = [i for i, row in enumerate(rows) if row is not None]
        unknown = [i for i, row in enumerate(rows) if row is None]
        kept = [row for row in rows if row is not None]
        features = torch.stack(kept) if kept else torch.empty(0, sum(self.widths))
        mine = [texts[i] for i in unknown]
        others = None if pairs is None else [pairs[i] for i in unknown]
        tokens = [one.tokenize(mine, others) for one in self.teachers] if unknown else []
        return Reading(keys, known, features, unknown, tokens)

    def __call__(self, reading: Reading) -> list[list[torch.Tensor]]:
        """Per teacher and layer `float32 [B, H_l]`, without gradient; empty for layers that nobody asks for."""
        device = self.teachers[0].device
        rows = torch.empty(len(reading.texts), sum(self.widths), device=device)
        if reading.known:
            rows[reading.known] = reading.features.to(device, non_blocking=True)
        if reading.unknown:
            said = [one(tokens) for one, tokens in zip(self.teachers, reading.tokens, strict=True)]
            fresh = torch.cat([of[k] for of, own in zip(said, self.layers, strict=True) for k in own], dim=1)
            rows[reading.unknown] = fresh
            self._keep([reading.texts[i] for i in reading.unknown], fresh)
        parts = iter(rows.split(self.widths, dim=1))
        nothing = rows.new_empty(0)
        return [
            [next(parts) if layer in own else nothing for layer in range(len(depth))]
            for depth, own in zip(self.depths, self.layers, strict=True)
        ]

    def _keep(self, texts: Sequence[tuple[str, str | None]], rows: torch.Tensor) -> None:
        """Those that there is room for."""
        size = _BYTES_PER_TEXT + rows.shape[1] * rows.element_size()
        most = self._left // size
        if most <= 0:
            return
        kept = rows[:most].cpu() if most < len(rows) else rows.cpu()
        self._left -= size * len(kept)
        self._kept.update(zip(texts, kept.clone(), strict=False))


def _placed(inputs: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: values.to(device, non_blocking=True) for name, values in inputs.items()}


class FeatureNetwork(torch.nn.Module):
    """The student and the modules that are trained beside it, as one: whoever averages gradients averages both.

    Args:
        student: an `AutoModelForSequenceClassification`.
        heads: called with the student's layers, the teachers' layers and the rows' weights; returns a loss summed
            over the rows.
    """

    def __init__(self, student: torch.nn.Module, heads: torch.nn.Module) -> None:
        super().__init__()
        self.student, self.heads = student, heads

    def forward(
        self,
        features: list[list[torch.Tensor]] | None = None,
        weights: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> Any:
        """Logits `[B, C]`; with the teachers' `features` logits and the heads' loss."""
        if features is None:
            return self.student(**inputs).logits
        answer = self.student(**inputs, output_hidden_states=True)
        layers = pooled_layers(answer, _mask(inputs), "the student")
        return answer.logits, self.heads(layers, features, weights)
