"""Which script a text is written in, and which of them are groups of rows."""

from __future__ import annotations

import pytest

from muki_ray.scripts import group_of, groups, script


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain words", "LATIN"),
        ("naïve café", "LATIN"),
        ("привет мир", "CYRILLIC"),
        ("北京的天气", "CJK"),
        ("手机评测 iPhone", "CJK"),  # a character says as much as a few letters
        ("the word 北 in a sentence", "LATIN"),
        ("\uff21\uff22\uff23", "LATIN"),  # of full width
        ("ひらがなとカタカナ", "HIRAGANA"),
        ("한국어 문장", "HANGUL"),
        ("हिन्दी", "DEVANAGARI"),
        ("12:30 - 14:00!", ""),
        ("", ""),
    ],
)
def test_script(text: str, name: str) -> None:
    assert script(text) == name


def test_the_beginning_decides() -> None:
    assert script("a" * 400 + "北" * 400) == "LATIN"


def test_groups_are_scripts_of_many_rows() -> None:
    texts = ["北京"] * 30 + ["word"] * 60 + ["слово"] * 9 + ["12"]
    assert groups(texts) == ["LATIN", "CJK"]
    assert group_of(["北京", "word", "слово", "12", ""], ["LATIN", "CJK"]).tolist() == [1, 0, 0, 0, 0]
    assert group_of(["北京", "word"], ["LATIN"]).tolist() == [0, 0]


@pytest.mark.parametrize("texts", [["12", "!"], [], ["word"] * 3])
def test_there_is_always_one(texts: list[str]) -> None:
    assert len(groups(texts)) == 1


def test_equally_frequent_ones_have_an_order() -> None:
    assert groups(["слово", "word"]) == groups(["word", "слово"]) == ["CYRILLIC", "LATIN"]
