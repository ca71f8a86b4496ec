"""Evidence as a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muki_ray.config_method import DropoutConfig
from muki_ray.errors import StoreError
from muki_ray.store import Folder
from muki_ray.teachers.evidence import SCHEMA, EvidenceArrays, drawn_with, from_table, to_table

IDS = np.array([7, 3, 12], dtype=np.int64)
PARTS = ("logits", "mc_probs", "mc_energy", "mc_expected_entropy", "mc_variance", "mc_samples")


def floats(*values: float | list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def sampled() -> EvidenceArrays:
    return EvidenceArrays(
        logits=floats([1.0, -2.0], [0.5, 0.25], [3.0, 4.0]),
        mc_probs=floats([0.75, 0.25], [0.5, 0.5], [0.125, 0.875]),
        mc_energy=floats(1.0, 2.0, 3.0),
        mc_expected_entropy=floats(0.5, 0.25, 0.125),
        mc_variance=floats(0.0, 0.5, 1.0),
        mc_samples=floats(16.0, 16.0, 4.0),
    )


@given(
    st.integers(1, 8).flatmap(
        lambda rows: st.tuples(
            hnp.arrays(np.float32, (rows, 3), elements=st.floats(width=32)),
            hnp.arrays(np.float32, (rows,), elements=st.floats(width=32)),
        )
    )
)
def test_what_goes_in_comes_out(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    matrix, vector = arrays
    ids = np.arange(len(vector), dtype=np.int64) * 5
    given_ = EvidenceArrays(matrix, -matrix, vector, -vector, vector / 2, vector)
    back = from_table(to_table(ids, given_), ids, "x")
    for part in PARTS:
        np.testing.assert_array_equal(getattr(back, part), getattr(given_, part))
        assert getattr(back, part).dtype == np.float32


def test_through_a_file_and_in_pieces(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_table("part-00000.parquet", to_table(IDS, sampled()))
    table = folder.read_table("part-00000.parquet")
    for read in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)])):
        back = from_table(read, IDS, "x")
        for part in PARTS:
            np.testing.assert_array_equal(getattr(back, part), getattr(sampled(), part))


def test_others_read_it_as_plain_columns(tmp_path: Path) -> None:
    pq.write_table(to_table(IDS, sampled()), tmp_path / "x.parquet")
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(frame.columns) == ["row_id", *PARTS]
    assert frame["row_id"].tolist() == [7, 3, 12]
    assert frame["logits"][1].tolist() == [0.5, 0.25]
    assert frame["mc_energy"].dtype == np.float32
    types = pq.read_schema(tmp_path / "x.parquet")
    assert types.equals(SCHEMA)
    assert not any(isinstance(field.type, pa.ExtensionType) for field in types)


def test_without_samples_the_mc_columns_are_null() -> None:
    table = to_table(IDS, EvidenceArrays(sampled().logits))
    assert table.schema.equals(SCHEMA)
    assert {name: table[name].null_count for name in PARTS} == {
        "logits": 0, "mc_probs": 3, "mc_energy": 3, "mc_expected_entropy": 3, "mc_variance": 3, "mc_samples": 3,
    }  # fmt: skip
    back = from_table(table, IDS, "x")
    np.testing.assert_array_equal(back.logits, sampled().logits)
    assert (back.mc_probs, back.mc_energy, back.mc_expected_entropy, back.mc_variance) == (None,) * 4


@pytest.mark.parametrize("ids", [[7, 12, 3], [7, 3], [7, 3, 12, 13], [7, 3, 11]])
def test_other_rows_are_refused(ids: list[int]) -> None:
    with pytest.raises(
        StoreError, match=r"^run/part-00000 speaks of other rows than the corpus shard; delete"
    ):
        from_table(to_table(IDS, sampled()), np.array(ids), "run/part-00000")


def test_a_table_without_logits_is_refused() -> None:
    table = to_table(IDS, sampled())
    table = table.set_column(1, SCHEMA.field("logits"), pa.nulls(3, SCHEMA.field("logits").type))
    with pytest.raises(StoreError, match="x holds no logits"):
        from_table(table, IDS, "x")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_finite_finds_every_bad_number(part: str, bad: float) -> None:
    evidence = sampled()
    assert evidence.finite().tolist() == [True, True, True]
    getattr(evidence, part)[1] = bad
    assert evidence.finite().tolist() == [True, False, True]


def test_one_bad_label_spoils_its_row() -> None:
    evidence = EvidenceArrays(floats([1.0, np.nan], [1.0, 2.0], [np.inf, 0.0]))
    assert evidence.finite().tolist() == [False, True, False]
    assert EvidenceArrays(np.empty((0, 4), np.float32), None).finite().tolist() == []


def test_take() -> None:
    chosen = sampled().take(np.array([True, False, True]))
    np.testing.assert_array_equal(chosen.logits, floats([1.0, -2.0], [3.0, 4.0]))
    np.testing.assert_array_equal(chosen.mc_probs, floats([0.75, 0.25], [0.125, 0.875]))
    assert EvidenceArrays(sampled().logits).take(np.array([True, False, False])).mc_probs is None


def test_what_of_the_draws_names_evidence() -> None:
    ours, classical = DropoutConfig(), DropoutConfig(masks="per_element")
    assert drawn_with(0, ours) == drawn_with(0, classical) == [0, None], "nothing is drawn"
    assert drawn_with(4, ours) == [4, ours.model_dump(mode="json")]
    assert drawn_with(4, classical)[:2] == [4, classical.model_dump(mode="json")]
    assert len(drawn_with(4, classical)) == 3, "these draws have a format of their own"
