"""Evidence as a table: what one teacher says about one shard, in plain Parquet columns.

Pure: arrays and Arrow tables. `mc_*` columns are null where no Monte-Carlo samples were drawn.

Shapes: N rows, K samples, C_m labels of teacher m.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from muki_ray.config_method import DropoutConfig
from muki_ray.errors import StoreError
from muki_ray.uncertainty import TeacherEvidence

# part of every evidence fingerprint: raise it when the meaning of a column changes
EVIDENCE_FORMAT = 2
# the same for masks that are drawn by the forward, element by element: raise it when other ones are drawn
_ELEMENT_DRAWS = 2

_FLOATS = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("logits", _FLOATS),  # deterministic pass, [C_m]
        ("mc_probs", _FLOATS),  # mean over k of softmax(z_k), [C_m] (MUKI eq. 5)
        ("mc_energy", pa.float32()),  # mean over k of logsumexp(z_k)
        ("mc_expected_entropy", pa.float32()),  # mean over k of H(softmax(z_k)), nats
        ("mc_variance", pa.float32()),  # sum over labels of the variance over k of the probabilities
        ("mc_samples", pa.float32()),  # samples drawn: K, or fewer where the row's score had settled
    ]
)


def drawn_with(samples: int, dropout: DropoutConfig) -> list[Any]:
    """What of the draws belongs in an evidence fingerprint, as JSON can hold it.

    With no samples the dropout settings change nothing and stay out of it.
    """
    if not samples:
        return [samples, None]
    format_ = [_ELEMENT_DRAWS] if dropout.masks == "per_element" else []
    return [samples, dropout.model_dump(mode="json"), *format_]


@dataclass(frozen=True)
class EvidenceArrays:
    """One shard's evidence: `logits` and `mc_probs` `[N, C_m]`, the rest `[N]`; mc parts None when K = 0."""

    logits: NDArray[np.float32]
    mc_probs: NDArray[np.float32] | None = None
    mc_energy: NDArray[np.float32] | None = None
    mc_expected_entropy: NDArray[np.float32] | None = None
    mc_variance: NDArray[np.float32] | None = None
    mc_samples: NDArray[np.float32] | None = None

    def finite(self) -> NDArray[np.bool_]:
        """Rows of which every number is finite, `[N]`."""
        good = np.ones(len(self.logits), dtype=np.bool_)
        for part in (getattr(self, field.name) for field in fields(self)):
            if part is not None:
                good &= np.isfinite(part).all(axis=tuple(range(1, part.ndim)))
        return good

    def take(self, rows: NDArray[np.bool_]) -> TeacherEvidence:
        """What the scores need of the rows chosen."""

        def part(values: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
            return None if values is None else values[rows]

        return TeacherEvidence(
            self.logits[rows],
            part(self.mc_probs),
            part(self.mc_energy),
            part(self.mc_expected_entropy),
            part(self.mc_variance),
        )


def float_lists(values: NDArray[np.floating]) -> pa.Array:
    """Rows of a matrix as a `list<float>` column: what any reader of Parquet understands."""
    rows, width = values.shape
    offsets = pa.array(np.arange(0, (rows + 1) * width, width), pa.int32())  # raises where it would overflow
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.float32).reshape(-1)))


def to_table(row_ids: NDArray[np.int64], evidence: EvidenceArrays) -> pa.Table:
    """Arrays of one shard as a table of `SCHEMA`."""
    columns = [pa.array(row_ids, pa.int64()), float_lists(evidence.logits)]
    columns.append(
        pa.nulls(len(row_ids), _FLOATS) if evidence.mc_probs is None else float_lists(evidence.mc_probs)
    )
    columns.extend(
        pa.nulls(len(row_ids), pa.float32()) if scalar is None else pa.array(scalar, pa.float32())
        for scalar in (
            evidence.mc_energy,
            evidence.mc_expected_entropy,
            evidence.mc_variance,
            evidence.mc_samples,
        )
    )
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def from_table(table: pa.Table, row_ids: NDArray[np.int64], where: str) -> EvidenceArrays:
    """Arrays of one shard, checked to speak of exactly these rows.

    Raises:
        StoreError: the rows are not those of the corpus shard.
    """
    if not np.array_equal(table["row_id"].to_numpy(), row_ids):
        raise StoreError(
            f"{where} speaks of other rows than the corpus shard; delete that folder and run again"
        )

    def matrix(name: str) -> NDArray[np.float32] | None:
        column = table[name].combine_chunks()
        if column.null_count == len(column) and len(column):
            return None
        flat = column.flatten().to_numpy(zero_copy_only=False)
        return np.asarray(flat.reshape(len(row_ids), -1), dtype=np.float32)

    def vector(name: str) -> NDArray[np.float32] | None:
        column = table[name]
        if column.null_count == len(column) and len(column):
            return None
        return np.asarray(column.to_numpy(), dtype=np.float32)

    logits = matrix("logits")
    if logits is None:
        raise StoreError(f"{where} holds no logits; delete that folder and run again")
    return EvidenceArrays(
        logits,
        matrix("mc_probs"),
        vector("mc_energy"),
        vector("mc_expected_entropy"),
        vector("mc_variance"),
        vector("mc_samples"),
    )
