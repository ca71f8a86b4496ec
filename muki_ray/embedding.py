"""What the student's base model makes of texts, before it has learned anything: a vector each.

The mean of its last hidden states over a text's tokens, which needs no training. Knows Torch and the student's model;
knows nothing of evidence, no Ray.

Shapes: N rows, B rows of a batch, E hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muki_ray.allocator import keep_freed_memory
from muki_ray.baselines.features import pooled_layers
from muki_ray.errors import ConfigError, StudentError
from muki_ray.student.model import StudentSpec, build_student
from muki_ray.teachers.batching import padded_width, token_batches

# tokens of one forward: as many as caches of a CPU hold, and enough to fill a GPU
_TOKENS_CPU, _TOKENS_CUDA = 2048, 16_384
# the head has no say in what is read, but a classifier has one
_HEAD = ["0", "1"]


@torch.no_grad()
def embed(
    spec: StudentSpec, texts: Sequence[str], threads: int, gpu: bool, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32] | None:  # fmt: skip
    """Embeddings of texts, `[N, E]`; None where the model gives no vector per token, or none that is finite.

    A text of which the tokenizer leaves nothing, or whose vector is not finite, gets the mean of the others. A GPU whose
    memory does not hold a batch gets smaller ones.

    Args:
        threads: Torch's, meanwhile.
        gpu: whether a GPU may be used, if there is one.
        progress: called with the number of rows done so far.

    Raises:
        StudentError: the model cannot be loaded, or the GPU's memory does not hold one text.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # Torch keeps it per thread
    try:
        device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        model, tokenizer = build_student(replace(spec, previous=None), _HEAD, 0, None)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False  # a decoder would keep keys and values that nobody asks for
        reader = _Reader(model.eval().to(device), tokenizer, spec.max_length)
        return reader.read(
            texts, _TOKENS_CUDA if device == "cuda" else _TOKENS_CPU, progress or (lambda done: None)
        )
    except ConfigError:  # no vector per token
        return None
    finally:
        torch.set_num_threads(before)
        if gpu and torch.cuda.is_available():
            torch.cuda.empty_cache()  # others may train on that device next


@dataclass
class _Reader:
    """The model on its device, and its tokenizer."""

    model: Any
    tokenizer: Any
    max_length: int

    def read(
        self, texts: Sequence[str], budget: int, progress: Callable[[int], None]
    ) -> NDArray[np.float32] | None:
        """See `embed`; `budget`: tokens of one forward."""
        # the mask tells which tokens count, also where the model takes none
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=True,
        )
        rows = [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]
        some = [i for i, row in enumerate(rows) if row["input_ids"]]
        lengths = [len(rows[i]["input_ids"]) for i in some]
        found: NDArray[np.float32] | None = None
        waiting = deque(token_batches(lengths, budget))
        done = len(rows) - len(some)
        while waiting:
            places = waiting.popleft()
            vectors = self._held([rows[some[place]] for place in places])
            if vectors is None:
                left = [*places, *(place for later in waiting for place in later)]
                budget = max(lengths[place] for place in places) * len(places) // 2
                again = token_batches([lengths[place] for place in left], budget)
                waiting = deque([left[i] for i in smaller] for smaller in again)
                continue
            if found is None:
                found = np.full((len(rows), vectors.shape[1]), np.nan, np.float32)
            found[[some[place] for place in places]] = vectors
            done += len(places)
            progress(done)
        return None if found is None else _filled(found)

    def _held(self, rows: list[dict[str, list[int]]]) -> NDArray[np.float32] | None:
        """`[B, E]`; None where memory does not hold so many rows at once."""
        try:
            return self._means(rows).cpu().numpy()
        except torch.OutOfMemoryError as problem:
            if len(rows) == 1:
                raise StudentError(
                    f"the GPU's memory does not hold one text of {len(rows[0]['input_ids'])} tokens in student.model; "
                    "lower student.max_length, use a larger GPU, or set method.embedding: false"
                ) from problem
        torch.cuda.empty_cache()  # what the failed forward held is free only after that block
        return None

    def _means(self, rows: list[dict[str, list[int]]]) -> torch.Tensor:
        """`float32 [B, E]`. Raises ConfigError where there is no hidden state for every token."""
        width = max(len(row["input_ids"]) for row in rows)
        if self.tokenizer.pad_token_id is not None:  # few shapes
            width = max(width, min(padded_width(width), self.max_length))
        device = next(self.model.parameters()).device
        inputs = self.tokenizer.pad(
            rows, padding="max_length", max_length=width, return_tensors="pt", return_attention_mask=True
        ).to(device)
        taken = {name: value for name, value in inputs.items() if name in self.tokenizer.model_input_names}
        answer = self.model(**taken, output_hidden_states=True)
        return pooled_layers(answer, inputs["attention_mask"], "the student")[-1]


def _filled(found_NE: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Rows without a finite vector get the mean of the others; None where there are no others."""
    good_N = np.isfinite(found_NE).all(axis=1)
    if not good_N.any():
        return None
    found_NE[~good_N] = found_NE[good_N].mean(axis=0)
    return found_NE
