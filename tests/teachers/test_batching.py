"""Batches by token budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.teachers.batching import padding_waste, token_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=60)
BUDGETS = st.integers(1, 5000)


@given(LENGTHS, BUDGETS)
def test_every_row_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(batches), "no batch is empty"


@given(LENGTHS, BUDGETS)
def test_the_budget_is_kept_unless_one_row_exceeds_it(lengths: list[int], budget: int) -> None:
    for batch in token_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(LENGTHS, BUDGETS)
def test_longest_first_and_ties_keep_their_order(lengths: list[int], budget: int) -> None:
    order = [row for batch in token_batches(lengths, budget) for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


@given(LENGTHS.filter(bool), BUDGETS)
def test_a_batch_ends_only_where_the_next_row_does_not_fit(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(1, lengths[batch[0]]) > budget


def test_by_hand() -> None:
    #          row: 0  1  2  3  4  5
    lengths = [3, 10, 4, 10, 2, 50]
    batches = token_batches(lengths, 20)
    assert batches == [[5], [1, 3], [2, 0, 4]]
    # padded: 1*50 + 2*10 + 3*4 = 82, of which 79 are tokens
    assert padding_waste(lengths, batches) == pytest.approx(3 / 82)
    assert padding_waste(lengths, [[0, 1, 2, 3, 4, 5]]) == pytest.approx(1 - 79 / 300)


def test_nothing_to_cut() -> None:
    assert token_batches([], 10) == []
    assert padding_waste([], []) == 0.0
    assert padding_waste([0], [[0]]) == 0.0


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_is_a_mistake(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 1, got {budget}"):
        token_batches([1], budget)
