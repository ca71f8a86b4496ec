"""The union of label sets: joined by name, independent of order, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.errors import LabelError
from muki_ray.labels import TeacherLabels, join, near_collisions, teacher_labels

NEWS = TeacherLabels("news", ("world", "sport"))
SPORT = TeacherLabels("sport", ("tennis", "sport", "chess"))


def test_union_is_by_name_and_sorted() -> None:
    space = join([NEWS, SPORT])
    assert space.names == ("chess", "sport", "tennis", "world")
    assert space.teachers == ("news", "sport")
    assert len(space) == 4
    np.testing.assert_array_equal(space.index[0], [3, 1])
    np.testing.assert_array_equal(space.index[1], [2, 1, 0])
    assert all(index.dtype == np.int64 for index in space.index)
    assert space.id2label == {0: "chess", 1: "sport", 2: "tennis", 3: "world"}
    assert space.label2id == {"chess": 0, "sport": 1, "tennis": 2, "world": 3}


def test_owners() -> None:
    space = join([NEWS, SPORT])
    assert space.owners("sport") == (0, 1)
    assert space.owners("world") == (0,)
    assert space.owners("chess") == (1,)
    assert space.owners("poetry") == ()


def test_names_come_in_the_order_of_the_logits_not_of_the_map() -> None:
    assert teacher_labels("t", {1: "b", 0: "a", 2: "c"}).names == ("a", "b", "c")


def test_rename_joins_labels_of_two_teachers() -> None:
    first = teacher_labels("first", {0: "pos", 1: "neg"}, {"pos": "positive"})
    second = teacher_labels("second", {0: "positive", 1: "mixed"})
    assert join([first, second]).names == ("mixed", "neg", "positive")


def test_rename_may_swap_names() -> None:
    assert teacher_labels("t", {0: "a", 1: "b"}, {"a": "b", "b": "a"}).names == ("b", "a")


def test_unnamed_labels_can_be_named() -> None:
    names = {"LABEL_0": "neg", "LABEL_1": "pos"}
    assert teacher_labels("t", {0: "LABEL_0", 1: "LABEL_1"}, names).names == ("neg", "pos")


@pytest.mark.parametrize(
    "name",
    ["1", "2", "-1", "label_1", "LABEL 1", "Label2", "label-1", "class_1", "CLASS 2", "class01", " 1 ", "LABEL_7"],
)  # fmt: skip
def test_positions_for_names_are_names_only_where_the_user_says_so(name: str) -> None:
    own = {0: "good", 1: name}
    with pytest.raises(LabelError, match=rf"'t' has unnamed labels \({name}\)"):
        teacher_labels("t", own)
    with pytest.raises(LabelError, match=rf"unnamed labels \({name}\)"):
        teacher_labels("t", own, {"good": "better"})
    assert teacher_labels("t", own, {name: "bad"}).names == ("good", "bad")
    assert teacher_labels("t", own, {name: name}).names == ("good", name.strip())
    assert teacher_labels("t", own, {name: "7"}).names == ("good", "7")


@pytest.mark.parametrize(
    "name",
    [
        "404",
        "2019",
        "CLASS 3",
        "label_0",
        "1 star",
        "4 stars",
        "1e3",
        "3.5",
        "2024-25",
        "0_1",
        "class",
        "label",
        "class_a",
        "B2",
        "f-16",
    ],
)
def test_names_with_numbers_in_them_are_names(name: str) -> None:
    assert teacher_labels("t", {0: "x", 1: name}).names == ("x", name)


def test_the_map_that_the_message_shows_is_yaml_that_works() -> None:
    own = {0: "0", 1: "1"}
    with pytest.raises(LabelError, match=r'labels: \{"0": <name>, \.\.\.\}') as refusal:
        teacher_labels("stars", own)
    shown = str(refusal.value).rpartition("mapped to itself: ")[2]
    assert yaml.safe_load(shown.replace("...", '"1": "1"')) == {"0": "0", "1": "1"}
    assert teacher_labels("stars", own, {"0": "0", "1": "1"}).names == ("0", "1")


def test_spaces_around_names_do_not_count() -> None:
    assert teacher_labels("t", {0: " pos", 1: "neg\n"}).names == ("pos", "neg")


def test_merged_labels_share_a_place() -> None:
    rename = {"very good": "good", "very bad": "bad"}
    own = {0: "very bad", 1: "bad", 2: "good", 3: "very good"}
    space = join([teacher_labels("t", own, rename, merge=True)])
    assert space.names == ("bad", "good")
    np.testing.assert_array_equal(space.index[0], [0, 0, 1, 1])
    assert space.owners("good") == (0,)


REFUSALS = {
    "unnamed": ({0: "LABEL_0", 1: "LABEL_1"}, None, False, r"unnamed labels \(LABEL_0\).*labels: \{LABEL_0"),
    "one left unnamed": (
        {0: "LABEL_0", 1: "LABEL_1"},
        {"LABEL_0": "neg"},
        False,
        r"unnamed labels \(LABEL_1\)",
    ),
    "numbers": ({0: "0", 1: "1"}, None, False, r"unnamed labels \(0\).*labels: \{\"0\": <name>"),
    "regression head": ({0: "score"}, None, False, r"has 1 label.*at least 2.*regression"),
    "no labels": ({}, None, False, r"has 0 label.*at least 2"),
    "gap in positions": ({0: "a", 2: "b"}, None, False, r"positions \[0, 2\], not 0\.\.1; mend"),
    "not from zero": ({1: "a", 2: "b"}, None, False, r"positions \[1, 2\], not 0\.\.1; mend"),
    "named twice": ({0: "a", 1: "b", 2: "a"}, None, True, r"names label 'a' twice; mend id2label"),
    "unknown rename": ({0: "a", 1: "b"}, {"c": "d"}, False, r"renames 'c'.*\[a, b\]; use the model's own"),
    "empty name": ({0: "a", 1: ""}, None, False, r"empty label name; name it"),
    "blank after rename": ({0: "a", 1: "b"}, {"b": "  "}, False, r"empty label name; name it"),
    "silent merge": ({0: "a", 1: "b", 2: "c"}, {"b": "a"}, False, r"become 'a'; set merge_labels: true"),
    "merge by spaces": ({0: "a", 1: "a ", 2: "c"}, None, False, r"become 'a'; set merge_labels: true"),
    "merged to one": ({0: "a", 1: "b"}, {"b": "a"}, True, r"only label 'a' after renaming.*at least 2"),
}


@pytest.mark.parametrize(("own", "rename", "merge", "match"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(own: dict[int, str], rename: dict[str, str] | None, merge: bool, match: str) -> None:
    with pytest.raises(LabelError, match=match) as refusal:
        teacher_labels("mine", own, rename, merge)
    assert "'mine'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_long_lists_are_cut_in_messages() -> None:
    with pytest.raises(LabelError, match=r"n7, \.\.\.\]"):
        teacher_labels("t", {i: f"n{i}" for i in range(150)}, {"x": "y"})


def test_no_teacher_is_refused() -> None:
    with pytest.raises(LabelError, match="at least one"):
        join([])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sport", "sport"),
        ("sci/tech", "Sci Tech"),
        ("not_spam", "not-spam"),
        ("caf\u00e9", "cafe\u0301"),  # one character, or a letter and an accent
        ("STRASSE", "stra\u00dfe"),
        ("sport", "\uff53port"),  # full-width letter
    ],
)
def test_near_collisions_are_found(one: str, other: str) -> None:
    space = join([TeacherLabels("a", (one, "x")), TeacherLabels("b", (other, "y"))])
    assert near_collisions(space) == [tuple(sorted((one, other)))]


def test_different_labels_are_not_near_collisions() -> None:
    # the last two differ in a vowel sign, which is no punctuation
    names = ("sport", "sports", "+", "-", "cafe", "caf\u00e9", "\u0915\u093e", "\u0915\u0940")
    assert near_collisions(join([TeacherLabels("t", names)])) == []


@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=5, unique=True).map(tuple),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
def test_union_does_not_depend_on_the_order_of_the_teachers(
    label_sets: list[tuple[str, ...]], random: object
) -> None:
    teachers = [TeacherLabels(f"t{m}", names) for m, names in enumerate(label_sets)]
    shuffled = list(teachers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = join(teachers), join(shuffled)
    assert one.names == other.names == tuple(sorted(set().union(*label_sets)))
    places = dict(zip(other.teachers, other.index, strict=True))
    for teacher, index in zip(teachers, one.index, strict=True):
        # each position leads back to the teacher's own label, in either order
        assert tuple(one.names[i] for i in index) == teacher.names
        np.testing.assert_array_equal(places[teacher.teacher], index)
