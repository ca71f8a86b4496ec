"""The text's view: what a row of it is, and that nothing depends on the company of other rows."""

from __future__ import annotations

import numpy as np
import pytest

from muki_ray.text_view import counts, folds, rarity, shown, view

TEXTS = ["play some jazz", "play some rock music", "what is my balance", "balance of my account"]


def test_rarity_by_hand() -> None:
    words, _ = counts(TEXTS)
    columns = rarity(TEXTS)
    play = set(words[0].indices) & set(words[1].indices)  # "play", "some", "play some": in 2 of 4 rows
    assert len(play) == 3
    np.testing.assert_allclose(columns[list(play)], 1 + np.log(5 / 3), rtol=1e-6)
    jazz = set(words[0].indices) - set(words[1].indices)  # "jazz", "some jazz": in 1
    np.testing.assert_allclose(columns[list(jazz)], 1 + np.log(5 / 2), rtol=1e-6)


def test_words_have_length_1_and_pieces_half_of_it() -> None:
    rows = view(TEXTS, rarity(TEXTS)).toarray()
    half = rows.shape[1] // 2
    np.testing.assert_allclose(np.linalg.norm(rows[:, :half], axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows[:, half:], axis=1), 0.5, rtol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    columns = rarity(TEXTS)
    alone = view(TEXTS[2:3], columns).toarray()
    np.testing.assert_array_equal(view(TEXTS, columns).toarray()[2:3], alone)


def test_texts_that_share_words_are_closer() -> None:
    rows = view(TEXTS, rarity(TEXTS)).toarray()
    near = rows @ rows.T
    assert near[0, 1] > near[0, 2]
    assert near[2, 3] > near[2, 0]


@pytest.mark.parametrize("text", ["", " ", "!", "在北京", "ß" * 2000])
def test_any_text_has_a_finite_view(text: str) -> None:
    rows = view([text, "other"], rarity([text, "other"]))
    assert np.isfinite(rows.toarray()).all()


def test_chinese_shows_in_pieces() -> None:
    texts = ["北京的天气", "北京的新闻", "足球比赛"]
    rows = view(texts, rarity(texts)).toarray()
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


def test_of_a_pair_both_texts_are_shown_and_of_any_only_the_beginning() -> None:
    assert shown(["play"], ["jazz"]) == ["play\njazz"]
    assert shown(["play " * 800], ["jazz " * 800])[0].count("jazz") == 200
    assert shown(["a" * 2000]) == shown(["a" * 2000 + " tail"])
    columns = rarity(TEXTS)
    pair = view(shown(["play " * 800], ["jazz"]), columns)
    assert set(pair.indices) >= set(view(["jazz"], columns).indices)


def test_folds_follow_from_the_text_alone() -> None:
    texts = [f"text {i}" for i in range(300)]
    found = folds(texts, 3)
    np.testing.assert_array_equal(found[::-1], folds(texts[::-1], 3))
    assert np.bincount(found, minlength=3).min() > 60
