"""Corpus statistics: counts by hand, and exact sums whatever the order of the shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from muki_ray.errors import StoreError
from muki_ray.statistics import BINS, EDGES, CorpusStatistics, bin_counts, owner_counts

unit = st.floats(0, 1)
batches = st.integers(0, 6).flatmap(
    lambda n: st.tuples(*(hnp.arrays(np.float64, shape, elements=unit) for shape in ((n, 3), (n,))))
)
Batch = tuple[NDArray[np.float64], NDArray[np.float64]]


def of(*parts: Batch) -> CorpusStatistics:
    statistics = CorpusStatistics.empty(3)
    for scores_NM, margins_N in parts:
        statistics.update(scores_NM, margins_N)
    return statistics


def test_counts_by_hand() -> None:
    statistics = CorpusStatistics.empty(2)
    statistics.update(np.array([[0.0, 1.0], [0.51, 0.5], [0.25, 0.25]]), np.array([1.0, 0.01, 1e-6]))
    assert statistics.scores_MB[0].nonzero()[0].tolist() == [0, 12, 25]  # bins are 0.02 wide, closed below
    assert statistics.scores_MB[1].nonzero()[0].tolist() == [12, 25, 49]
    assert statistics.margin_B[[0, 49]].tolist() == [2, 1]
    assert statistics.won_M.tolist() == [2, 1]  # a tie goes to the first
    assert statistics.score_sum_M == pytest.approx([0.76, 1.75])
    assert statistics.margin_mean == pytest.approx(1.010001 / 3)
    assert (statistics.rows, statistics.teachers, len(statistics.edges)) == (3, 2, BINS + 1)


@given(hnp.arrays(np.float64, st.integers(0, 40), elements=st.one_of(unit, st.sampled_from(EDGES.tolist()))))
def test_bins_are_those_of_numpy(values_N: NDArray[np.float64]) -> None:
    assert bin_counts(values_N).tolist() == np.histogram(values_N, EDGES)[0].tolist()


@given(batches, batches, batches)
def test_merging_is_associative_and_commutative(a: Batch, b: Batch, c: Batch) -> None:
    x, y, z = of(a), of(b), of(c)
    assert x.merge(y) == y.merge(x)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    # the same to the last bit as one stream, in any order
    assert x.merge(y).merge(z) == of(a, b, c) == of(c, a, b)
    assert x.merge(CorpusStatistics.empty(3)) == x


@given(batches, batches)
def test_counts_add_up_to_rows_and_merging_leaves_its_inputs_alone(a: Batch, b: Batch) -> None:
    x = of(a)
    before = x.to_json()
    both = x.merge(of(b))
    assert x.to_json() == before
    assert both.rows == len(a[0]) + len(b[0]) == both.won_M.sum() == both.margin_B.sum()
    assert (both.scores_MB.sum(axis=1) == both.rows).all()
    assert both.score_sum_M == pytest.approx(a[0].sum(axis=0) + b[0].sum(axis=0), abs=1e-8)
    assert both.margin_sum == pytest.approx(a[1].sum() + b[1].sum(), abs=1e-8)


@given(batches)
def test_json_gives_back_an_equal_object(batch: Batch) -> None:
    statistics = of(batch)
    assert CorpusStatistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics


def test_sums_of_billions_of_rows_do_not_overflow() -> None:
    statistics = of((np.ones((4, 3)), np.ones(4)))
    for _ in range(40):
        statistics = statistics.merge(statistics)
    assert statistics.rows == 4 * 2**40
    assert statistics.margin_mean == 1.0
    assert statistics.score_sum_M.tolist() == [4.0 * 2**40] * 3


def test_an_empty_object_has_no_mean() -> None:
    assert CorpusStatistics.empty(1).margin_mean is None
    with pytest.raises(ValueError, match="at least 1"):
        CorpusStatistics.empty(0)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_values_outside_the_bins_are_refused_and_change_nothing(bad: float) -> None:
    statistics = CorpusStatistics.empty(2)
    with pytest.raises(ValueError, match="must lie in"):
        statistics.update(np.array([[bad, 0.5]]), np.array([0.5]))
    with pytest.raises(ValueError, match="must lie in"):
        statistics.update(np.array([[0.5, 0.5]]), np.array([bad]))
    assert statistics == CorpusStatistics.empty(2)


def test_rounding_at_the_ends_is_not_refused() -> None:
    assert bin_counts(np.array([-1e-9, 1 + 1e-9]))[[0, -1]].tolist() == [1, 1]


def test_shapes_that_disagree_are_refused() -> None:
    statistics = CorpusStatistics.empty(2)
    for scores_shape, margins_shape in [((2, 3), 2), ((2, 2), 3), (2, 2), ((2, 2), (2, 1))]:
        with pytest.raises(ValueError, match=r"must be \[N, 2\]"):
            statistics.update(np.ones(scores_shape), np.ones(margins_shape))
    with pytest.raises(ValueError, match="2 and of 3"):
        statistics.merge(CorpusStatistics.empty(3))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("won"),
        lambda content: content.update(rows=5),
        lambda content: content.update(bins=10),
        lambda content: content.update(won=[1, 0]),
        lambda content: content.update(scores=[[1, 2], [3]]),
        lambda content: content.update(margin="x"),
        lambda content: content["scores"][0].__setitem__(0, 7),
    ],
)
def test_a_damaged_file_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    content = of((np.full((2, 3), 0.5), np.full(2, 0.5))).to_json()
    change(content)
    with pytest.raises(StoreError, match="delete the file"):
        CorpusStatistics.from_json(content)


def test_owner_counts_split_rows_by_who_knows_them() -> None:
    scores_NM = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
    right_MB, wrong_MB = owner_counts(scores_NM, np.array([0, 1, 1, -1]))
    assert right_MB.sum(axis=1).tolist() == [1, 2]
    assert wrong_MB.sum(axis=1).tolist() == [2, 1]
    assert right_MB[0].argmax() == bin_counts(np.array([0.9])).argmax()
    assert wrong_MB[1].argmax() == bin_counts(np.array([0.1])).argmax()
