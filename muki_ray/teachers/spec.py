"""A teacher as data: what the driver learned by inspection and every process may hold.

Light on purpose: the processes that only integrate unpickle it, and need neither Torch nor Transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from muki_ray.config_section import Dtype
from muki_ray.labels import TeacherLabels
from muki_ray.store import fingerprint


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher, inspected: everything needed to load it elsewhere, and to know whether it changed.

    Attributes:
        location: folder, URI or hub id; `revision` pins a hub id.
        labels: names in the union, in the order of the logits.
        max_length: tokens kept of a text.
        content: digest of weights, configuration and tokenizer.
        kind: digest of what decides its speed: teachers of one kind differ in weights and labels alone.
        dtype: what the weights are run in; `auto` until `resolved`.
    """

    name: str
    location: str
    revision: str | None
    adapter: str | None
    allow_pickle: bool
    device: Literal["auto", "cpu", "cuda"]
    labels: TeacherLabels
    max_length: int
    content: str
    kind: str
    dtype: Dtype

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes the teacher's answers. Label names do not: evidence is by position."""
        return fingerprint([self.content, self.max_length, self.dtype])

    def resolved(self, on_gpu: bool) -> TeacherSpec:
        """The same teacher with its dtype decided."""
        return replace(self, dtype=resolve_dtype(self.dtype, on_gpu))


def resolve_dtype(wanted: Dtype, on_gpu: bool) -> Literal["float32", "bfloat16", "float16"]:
    """What `auto` means: bfloat16 where the hardware multiplies it fast, else float32.

    Decided once in the driver, so that every actor of a run computes in the same type.
    """
    if wanted != "auto":
        return wanted
    import torch

    if on_gpu:
        return (
            "bfloat16" if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(False) else "float32"
        )
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if fast else "float32"
