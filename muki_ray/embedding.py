"""What the student's base model makes of texts, before it has learned anything: a vector each.

The mean of its last hidden states over a text's tokens, which needs no training. Knows Torch and the student's model;
knows nothing of evidence, no Ray.

Shapes: N rows, B rows of a batch, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muki_ray.allocator import keep_freed_memory
from muki_ray.baselines.features import pooled_layers
from muki_ray.errors import ConfigError
from muki_ray.student.model import StudentSpec, build_student
from muki_ray.teachers.batching import token_batches

# tokens of one forward: as many as caches of a CPU hold, and enough to fill a GPU
_TOKENS_CPU, _TOKENS_CUDA = 2048, 16_384
# the head has no say in what is read, but a classifier has one
_HEAD = ["0", "1"]


@torch.no_grad()
def embed(
    spec: StudentSpec, texts: Sequence[str], threads: int, gpu: bool, progress: Callable[[int], None] | None = None
) -> NDArray[np.float32] | None:  # fmt: skip
    """Embeddings of texts, `[N, E]`; None where the model gives no vector per token, or none that is finite.

    A text of which the tokenizer leaves nothing, or whose vector is not finite, gets the mean of the others.

    Args:
        threads: Torch's, meanwhile.
        gpu: whether a GPU may be used, if there is one.
        progress: called with the number of rows done since the last call.

    Raises:
        StudentError: the model cannot be loaded.
    """
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # Torch keeps it per thread
    try:
        device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        model, tokenizer = build_student(replace(spec, previous=None), _HEAD, 0, None)
        return _embedded(model.eval().to(device), tokenizer, spec.max_length, texts, device, progress)
    except ConfigError:  # no vector per token
        return None
    finally:
        torch.set_num_threads(before)
        if gpu and torch.cuda.is_available():
            torch.cuda.empty_cache()  # others may train on that device next


def _embedded(
    model: Any, tokenizer: Any, max_length: int, texts: Sequence[str], device: str, progress: Callable[[int], None] | None
) -> NDArray[np.float32] | None:  # fmt: skip
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False)
    rows = [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]
    some = [i for i, row in enumerate(rows) if row["input_ids"]]
    lengths = [len(rows[i]["input_ids"]) for i in some]
    found: NDArray[np.float32] | None = None
    for places in token_batches(lengths, _TOKENS_CUDA if device == "cuda" else _TOKENS_CPU):
        batch = [some[place] for place in places]
        vectors = _means(model, tokenizer.pad([rows[i] for i in batch], return_tensors="pt").to(device))
        if found is None:
            found = np.full((len(rows), vectors.shape[1]), np.nan, np.float32)
        found[batch] = vectors.cpu().numpy()
        if progress is not None:
            progress(len(batch))
    return None if found is None else _filled(found)


def _means(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`float32 [B, E]`. Raises ConfigError where there is no hidden state for every token."""
    answer = model(**inputs, output_hidden_states=True)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))  # not every model takes one
    return pooled_layers(answer, mask, "the student")[-1]


def _filled(found_NE: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Rows without a finite vector get the mean of the others; None where there are no others."""
    good_N = np.isfinite(found_NE).all(axis=1)
    if not good_N.any():
        return None
    found_NE[~good_N] = found_NE[good_N].mean(axis=0)
    return found_NE
