"""The text's view: what a row of it is, and that nothing depends on the company of other rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import HashingVectorizer

from muki_ray.text_view import axes, counts, folds, keys, rarity, shown, view

TEXTS = ["play some jazz", "play some rock music", "what is my balance", "balance of my account"]


def seen(texts: list[str]) -> Any:
    """The view of texts that are a corpus of their own."""
    counted = counts(texts)
    return view(counted, rarity(counted))


def test_rarity_by_hand() -> None:
    words, pieces = counts(TEXTS)
    columns = rarity((words, pieces))
    play = set(words[0].indices) & set(words[1].indices)  # "play", "some", "play some": in 2 of 4 rows
    assert len(play) == 3
    np.testing.assert_allclose(columns[list(play)], 1 + np.log(5 / 3), rtol=1e-6)
    jazz = set(words[0].indices) - set(words[1].indices)  # "jazz", "some jazz": in 1
    np.testing.assert_allclose(columns[list(jazz)], 1 + np.log(5 / 2), rtol=1e-6)


def test_words_have_length_1_and_pieces_half_of_it() -> None:
    rows = seen(TEXTS).toarray()
    half = rows.shape[1] // 2
    np.testing.assert_allclose(np.linalg.norm(rows[:, :half], axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows[:, half:], axis=1), 0.5, rtol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    counted = counts(TEXTS)
    columns = rarity(counted)
    alone = view(counts(TEXTS[2:3]), columns).toarray()
    np.testing.assert_array_equal(view(counted, columns).toarray()[2:3], alone)


def test_texts_that_share_words_are_closer() -> None:
    rows = seen(TEXTS).toarray()
    near = rows @ rows.T
    assert near[0, 1] > near[0, 2]
    assert near[2, 3] > near[2, 0]


@pytest.mark.parametrize("text", ["", " ", "!", "在北京", "ß" * 2000])
def test_any_text_has_a_finite_view(text: str) -> None:
    rows = seen([text, "other"])
    assert np.isfinite(rows.toarray()).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it's 5 pm on the 3rd", ["it", "pm", "on", "the", "3rd"]),
        ("naïve cafe\u0301 a", ["naïve", "cafe\u0301"]),
        ("买iPhone手机", ["买", "iphone", "手", "机"]),
        ("テスト", ["テ", "ス", "ト"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ไทย", ["ไ", "ท", "ย"]),
    ],
)
def test_words_of_scripts_with_and_without_spaces(text: str, words: list[str]) -> None:
    expected = [*words, *(f"{one} {other}" for one, other in pairwise(words))]
    hashed = HashingVectorizer(n_features=2**15, analyzer=lambda tokens: tokens, alternate_sign=False)
    assert set(counts([text])[0].indices) == set(hashed.transform([expected]).indices)


def test_chinese_shows_in_pieces() -> None:
    texts = ["北京的天气", "北京的新闻", "足球比赛"]
    rows = seen(texts).toarray()
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


def test_of_a_pair_both_texts_are_shown_and_of_any_only_the_beginning() -> None:
    assert shown(["play"], ["jazz"]) == ["play\njazz"]
    assert shown(["play " * 800], ["jazz " * 800])[0].count("jazz") == 200
    assert shown(["a" * 2000]) == shown(["a" * 2000 + " tail"])
    pair = seen(shown(["play " * 800], ["jazz"]))
    assert set(pair.indices) >= set(seen(["jazz"]).indices)


def test_axes_keep_what_is_alike() -> None:
    rows = seen(TEXTS)
    along = rows @ axes(rows)
    assert along.shape == (4, 4)
    np.testing.assert_allclose(along @ along.T, (rows @ rows.T).toarray(), atol=1e-5)


def test_what_many_rows_share_is_kept_and_what_one_row_has_alone_is_not() -> None:
    texts = [f"{('jazz', 'loan')[i % 2]} {7919 * i}" for i in range(600)]
    columns = rarity(counts(texts))
    found = axes(view(counts(texts), columns))
    assert found.shape[1] == 200
    topic, number = (np.linalg.norm(view(counts([text]), columns) @ found) for text in ("jazz", "4751400"))
    assert topic > 2 * number


@pytest.mark.parametrize("texts", [[""], ["", ""], ["a", "a", "a"]])
def test_texts_without_difference_have_axes_too(texts: list[str]) -> None:
    assert np.isfinite(axes(seen(texts))).all()


def test_folds_follow_from_the_text_alone() -> None:
    texts = [f"text {i}" for i in range(300)]
    found = folds(texts, 3)
    np.testing.assert_array_equal(found[::-1], folds(texts[::-1], 3))
    assert np.bincount(found, minlength=3).min() > 60


def test_keys_go_by_the_whole_text() -> None:
    found = keys(["a", "b", "a", "", "a" * 5000, "a" * 5001], np.zeros((6, 2)))
    assert found.dtype == np.uint64 and found[0] == found[2]
    assert len(set(found.tolist())) == 5
    assert keys([], np.zeros((0, 2))).shape == (0,)


def test_keys_tell_rows_apart_whose_texts_begin_alike() -> None:
    found = keys(["a"] * 4, np.array([[0.1], [0.1 + 1e-9], [0.2], [-0.0]]))
    assert found[0] == found[1] and len(set(found.tolist())) == 3
    assert keys(["a"], np.array([[0.0]])) == found[3]
