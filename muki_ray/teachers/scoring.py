"""A loaded classifier at work: texts in, evidence out.

Tokenizes raw text with the classifier's own tokenizer, cuts length-sorted batches by token budget, runs the
Monte-Carlo engine and reduces its samples in float32. Knows Torch, not Ray, not files.

Shapes: N rows, B rows of a batch, K samples, C_m labels.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from muki_ray.allocator import keep_freed_memory
from muki_ray.config_method import DropoutConfig
from muki_ray.errors import TeacherError
from muki_ray.teachers.batching import padded_width, token_batches
from muki_ray.teachers.dropout import McDropout, Samples
from muki_ray.teachers.evidence import EvidenceArrays
from muki_ray.teachers.loading import LoadedClassifier

# tokens of one forward at the stochastic layers, samples counted; measured best on CPU caches, and large
# enough to fill a GPU
_TOKENS_CPU, _TOKENS_CUDA = 1024, 262_144
# words of the probe; unequal lengths, so that padding is seen
_PROBE = ["one short text", "another text that is somewhat longer than the first one", "a third"]

_log = logging.getLogger("muki_ray")


class Scorer:
    """Turns texts into evidence with one classifier.

    Args:
        classifier: model and tokenizer, on its device.
        samples: K; 0 for the deterministic pass only.
        dropout: masks, layers, rate and seed.
        seed_key: fingerprint of the classifier, so that two teachers do not share masks.
        token_budget: tokens of one forward; default by device. Halved where the GPU's memory does not hold it.
    """

    def __init__(
        self,
        classifier: LoadedClassifier,
        *,
        samples: int,
        dropout: DropoutConfig,
        seed_key: str,
        token_budget: int | None = None,
    ) -> None:
        keep_freed_memory()
        self.classifier = classifier
        self.device = next(classifier.model.parameters()).device
        self.token_budget = token_budget or (_TOKENS_CUDA if self.device.type == "cuda" else _TOKENS_CPU)
        self._lowered = False
        self.engine = McDropout(
            classifier.model,
            self._pad(self._probe()),
            samples=samples,
            masks=dropout.masks,
            layers=dropout.layers,
            rate=dropout.rate,
            seed_key=(dropout.seed, seed_key),
            name=classifier.name,
            early_stop=dropout.early_stop,
            token_budget=self.token_budget,
        )

    def _probe(self) -> list[dict[str, list[int]]]:
        """Rows of unequal length, whatever the tokenizer makes of the words, so that padding is seen."""
        first, *others = self._encode(_PROBE, None)
        if all(len(row["input_ids"]) == len(first["input_ids"]) for row in others):
            first = {name: values[:-1] for name, values in first.items()}
        return [first, *others]

    def _encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> list[dict[str, list[int]]]:
        """Token ids of each row, truncated, not padded."""
        if not texts:
            return []  # not every tokenizer takes an empty list
        encoded = self.classifier.tokenizer(
            list(texts),
            list(pairs) if pairs is not None else None,
            truncation=True,
            max_length=self.classifier.max_length,
            padding=False,
            return_attention_mask=True,
        )
        names = [n for n in encoded if n in self.classifier.input_names]
        return [{n: encoded[n][i] for n in names} for i in range(len(texts))]

    def _pad(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        tokenizer, masked = self.classifier.tokenizer, "attention_mask" in rows[0]
        width = max(len(row["input_ids"]) for row in rows)
        if masked and tokenizer.pad_token_id is not None:  # without a mask padding would be read
            width = max(width, min(padded_width(width), self.classifier.max_length))
        padded = tokenizer.pad(
            rows, padding="max_length", max_length=width, return_tensors="pt", return_attention_mask=masked
        )
        return {name: tensor.to(self.device) for name, tensor in padded.items()}

    def score(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        shard: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> EvidenceArrays:
        """Evidence for `N` texts, in their order.

        Args:
            texts, pairs: first and, for pairs, second texts.
            shard: seeds classical masks, so that a retry of the shard draws the same.
            progress: called with the number of rows done since the last call.

        A row of which the tokenizer leaves nothing gets NaN: there is nothing to answer.

        Where the GPU's memory does not hold a batch, it and all later ones are cut smaller. Under masks per sample that
        changes nothing but the rounding; under masks per element, whose draw belongs to a batch, what comes after is
        drawn anew: the same again only for a memory that is full at the same batch.

        Raises:
            TeacherError: the memory does not hold a single row.
        """
        rows = self._encode(texts, pairs)
        some = [i for i, row in enumerate(rows) if row["input_ids"]]
        labels, K = self.classifier.num_labels, self.engine.samples
        out: dict[str, NDArray[np.float32]] = {"logits": np.full((len(rows), labels), np.nan, np.float32)}
        if K:
            out["mc_probs"] = np.full((len(rows), labels), np.nan, np.float32)
            for name in ("mc_energy", "mc_expected_entropy", "mc_variance", "mc_samples"):
                out[name] = np.full(len(rows), np.nan, np.float32)
        report = progress or (lambda rows: None)
        if len(some) < len(rows):
            report(len(rows) - len(some))
        lengths = [len(rows[i]["input_ids"]) for i in some]
        waiting = deque(token_batches(lengths, self.token_budget))
        number = 0
        while waiting:
            places = waiting.popleft()
            batch = [some[place] for place in places]
            samples = self._answers([rows[i] for i in batch], shard, number)
            if samples is None:
                left = [*places, *(place for later in waiting for place in later)]
                again = token_batches([lengths[place] for place in left], self.token_budget)
                waiting = deque([left[i] for i in smaller] for smaller in again)
                continue
            for name, value in reduce_samples(samples.logits, samples.drawn).items():
                out[name][batch] = value.cpu().numpy()
            report(len(batch))
            number += 1
        return EvidenceArrays(**out)

    def _answers(self, rows: list[dict[str, list[int]]], shard: int, number: int) -> Samples | None:
        """The engine's answers to a batch; None where memory does not hold it, and a smaller budget from now on."""
        inputs = self._pad(rows)
        try:
            return self.engine.run(inputs, shard=shard, batch=number)
        except torch.OutOfMemoryError:
            pass  # what the failed forward holds is free only after this block
        count, width = inputs["input_ids"].shape
        tokens = self.engine.largest_forward(count, width)
        if tokens <= width:
            raise TeacherError(
                f"teacher {self.classifier.name!r}: the GPU's memory does not hold one text of {width} tokens; "
                "lower its max_length, use a larger GPU, or let fewer teachers share one (resources.num_gpus)"
            )
        self.token_budget = self.engine.token_budget = tokens // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._lowered:
            _log.warning(
                "teacher %r: the GPU's memory does not hold %d tokens at once; going on with half of it, or less",
                self.classifier.name,
                tokens,
            )
        self._lowered = True
        return None


def reduce_samples(logits: torch.Tensor, drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of one batch from its samples, in float32.

    Args:
        logits: `float32 [K+1, B, C_m]`, the deterministic pass first.
        drawn: `[B]`, samples that each row has; what lies behind them is not looked at.

    Returns:
        `logits` and `mc_probs` `[B, C_m]`; `mc_energy`, `mc_expected_entropy`, `mc_variance`, `mc_samples` `[B]`;
        only `logits` when K = 0.
    """
    samples = logits.shape[0] - 1
    if samples == 0:
        return {"logits": logits[0]}
    has = torch.arange(1, samples + 1, device=drawn.device)[:, None] <= drawn  # [K, B]

    def mean(values: torch.Tensor) -> torch.Tensor:
        """Over the samples that were drawn; the others may be NaN."""
        seen = has.view(*has.shape, *[1] * (values.dim() - 2))
        counts = drawn.view(-1, *[1] * (values.dim() - 2))
        return torch.where(seen, values, 0.0).sum(dim=0) / counts

    log_probs = logits[1:].log_softmax(dim=-1)
    probs = log_probs.exp()
    mean_probs = mean(probs)
    return {
        "logits": logits[0],
        "mc_probs": mean_probs,
        "mc_energy": mean(logits[1:].logsumexp(dim=-1)),
        "mc_expected_entropy": mean(-torch.special.xlogy(probs, probs).sum(dim=-1)),
        "mc_variance": mean((probs - mean_probs) ** 2).sum(dim=-1),
        "mc_samples": drawn,
    }
