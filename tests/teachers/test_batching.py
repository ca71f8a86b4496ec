"""Batches by token budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.teachers.batching import SIZES, padded_width, padding_waste, token_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=60)
BUDGETS = st.integers(1, 5000)


@given(LENGTHS, BUDGETS)
def test_every_row_is_in_one_batch(lengths: list[int], budget: int) -> None:
    batches = token_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(batches), "no batch is empty"
    assert {len(batch) for batch in batches} <= set(SIZES.tolist())


@given(st.integers(1, 10_000))
def test_a_width_holds_the_row_and_little_more(length: int) -> None:
    assert length <= padded_width(length) < length * 17 / 16 + 1
    assert padded_width(padded_width(length)) == padded_width(length)


def test_few_shapes() -> None:
    """Many shards of texts up to 128 tokens: the shapes of all together are soon all seen."""
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(20):
        lengths = np.clip(rng.lognormal(4.0, 0.4, 2048).astype(int), 5, 128).tolist()
        for batch in token_batches(lengths, 1024):
            shapes.add((len(batch), padded_width(max(lengths[row] for row in batch))))
    assert len({padded_width(length) for length in range(1, 129)}) == 64
    assert len(shapes) < 150


@given(LENGTHS, BUDGETS)
def test_the_budget_is_kept_unless_one_row_exceeds_it(lengths: list[int], budget: int) -> None:
    for batch in token_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * padded_width(max(lengths[row] for row in batch)) <= budget


@given(LENGTHS, BUDGETS)
def test_longest_first_and_ties_keep_their_order(lengths: list[int], budget: int) -> None:
    order = [row for batch in token_batches(lengths, budget) for row in batch]
    assert order == sorted(range(len(lengths)), key=lambda row: -lengths[row])


def cost(lengths: list[int], batches: list[list[int]], budget: int) -> float:
    """Padded tokens, and a constant per batch."""
    return sum(
        max(1.0, budget / 16) + len(b) * padded_width(max(1, *(lengths[row] for row in b))) for b in batches
    )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.integers(1, 300))
def test_no_other_cut_costs_less(lengths: list[int], budget: int) -> None:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    found = cost(lengths, token_batches(lengths, budget), budget)
    for cuts in range(2 ** (len(order) - 1)):
        batches: list[list[int]] = [[order[0]]]
        for place, row in enumerate(order[1:]):
            batches.append([row]) if cuts >> place & 1 else batches[-1].append(row)
        if all(
            len(b) == 1 or len(b) * padded_width(max(1, lengths[b[0]])) <= budget for b in batches
        ) and all(len(b) in SIZES for b in batches):
            assert found <= cost(lengths, batches, budget) + 1e-9


def test_little_padding() -> None:
    """Lengths as texts have them; a batch of any of these budgets holds rows of many lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.0, 0.4, 2048).astype(int), 5, 128).tolist()
    for budget in (512, 1024, 8192):
        assert padding_waste(lengths, token_batches(lengths, budget)) < 0.05


def test_by_hand() -> None:
    #          row: 0  1  2  3  4  5
    lengths = [3, 10, 4, 10, 2, 50]
    # a batch costs 20 / 16 beside its tokens: row 2 in the last batch would cost 2 more tokens of padding
    batches = token_batches(lengths, 20)
    assert batches == [[5], [1, 3], [2], [0, 4]]
    # padded: 1*50 + 2*10 + 1*4 + 2*3 = 80, of which 79 are tokens
    assert padding_waste(lengths, batches) == pytest.approx(1 / 80)
    assert padding_waste(lengths, [[0, 1, 2, 3, 4, 5]]) == pytest.approx(1 - 79 / 300)


def test_nothing_to_cut() -> None:
    assert token_batches([], 10) == []
    assert padding_waste([], []) == 0.0
    assert padding_waste([0], [[0]]) == 0.0


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_is_a_mistake(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"at least 1, got {budget}"):
        token_batches([1], budget)
