"""Where co-training begins: both ways, by hand and by what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.cotraining_start import ByRank, ByScore, Start, bins, by_rank, by_score, start_of
from muki_ray.cotraining_views import Views

NOWHERE = np.zeros(0, np.int64)


def rows(
    certainty_NM: np.ndarray, answers_NM: np.ndarray | None = None, labels: tuple[int, ...] | None = None
) -> Views:
    """Rows that nothing is known of but certainties, which are the scores too, and answers."""
    answers_NM = np.zeros(certainty_NM.shape, np.int64) if answers_NM is None else np.asarray(answers_NM)
    labels = labels or (2,) * certainty_NM.shape[1]
    return Views(certainty_NM, certainty_NM, answers_NM, labels, [""] * len(certainty_NM))


def one_script(views: Views) -> np.ndarray:
    return np.zeros(len(views), np.int64)


def odds(start: Start, views: Views) -> np.ndarray:
    return start(views, one_script(views))


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_scores_count_by_their_spread() -> None:
    views = rows(np.array([[0.0, 1.0], [1.0, 0.0]]))  # standard deviation 0.5
    np.testing.assert_allclose(odds(by_score(views), views), views.scores_NM / 0.3)


def test_scores_that_are_all_alike_say_nothing() -> None:
    same = rows(np.full((4, 3), 0.7))
    np.testing.assert_array_equal(odds(by_score(same), same), np.zeros((4, 3)))


def test_ranks_by_hand() -> None:
    # five rows of each answer, two teachers of two labels: each label is thought to have 2.5 of five; so has one row more
    certainty = np.array([0.1, 0.2, 0.5, 0.6, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    answers = np.repeat([0, 1], 5)
    views = rows(np.stack([certainty, certainty], axis=1), np.stack([answers, answers], axis=1))
    found = odds(by_rank(views, one_script(views)), views)
    wanted = [logit((place + 0.5) / 5) for place in range(5)] * 2
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-9)
    np.testing.assert_allclose(found[:, 1], wanted, atol=1e-9)


def test_scripts_are_ranked_apart() -> None:
    certainty = np.array([[0.1], [0.2], [0.3], [0.7], [0.8], [0.9]])
    views, group = rows(np.concatenate([certainty, certainty], axis=1)), np.array([0, 0, 0, 1, 1, 1])
    found = by_rank(views, group)(views, group)[:, 0]
    np.testing.assert_allclose(found[:3], found[3:])
    assert (np.diff(found[:3]) > 0).all()
    together = odds(by_rank(views, one_script(views)), views)[:, 0]
    assert (np.diff(together) > 0).all()


def test_bins_are_labels_of_a_teacher_in_a_script() -> None:
    rng = np.random.default_rng(0)
    views, group = rows(rng.random((60, 2)), rng.integers(3, size=(60, 2)), (3, 3)), rng.integers(2, size=60)
    bin_NM = bins(views, group)
    told = {
        (*key, int(found))
        for m in range(2)
        for *key, found in zip([m] * 60, group, views.answers_NM[:, m], bin_NM[:, m], strict=True)
    }
    assert len(told) == len({key for *_, key in told}) == 12
    assert bin_NM.max() < 12


def test_a_small_label_claims_less_of_a_common_answer() -> None:
    """A label that 100 rows get as their answer is thought to have as many of its own as one that 10 rows get."""
    rng = np.random.default_rng(0)
    answers = np.repeat([0, 1], [100, 10])[:, None]
    views = rows(rng.random((110, 2)), np.concatenate([answers, answers], axis=1))
    start = by_rank(views, one_script(views))
    np.testing.assert_allclose(start.share_B[:2], [28 / 101, 10.5 / 11])  # (27.5 + 0.5) / (100 + 1), all ten


def test_a_teachers_part_grows_with_the_root_of_its_labels() -> None:
    views = rows(np.random.default_rng(0).random((120, 2)), labels=(1, 4))
    share_B = by_rank(views, one_script(views)).share_B
    np.testing.assert_allclose(share_B[0], (40 + 1 / 3) / 121)
    np.testing.assert_allclose(share_B[1], (20 + 2 / 3) / 121)


def test_counted_shares_are_what_was_believed() -> None:
    answers = np.repeat([0, 1], 5)[:, None]
    views = rows(np.random.default_rng(0).random((10, 2)), np.concatenate([answers, answers], axis=1))
    belief = np.tile([0.8, 0.2], (10, 1))
    belief[5:] = (0.4, 0.6)
    start = by_rank(views, one_script(views)).counted(views, one_script(views), belief)
    np.testing.assert_allclose(start.share_B, [4.6 / 6, 2.6 / 6, 1.4 / 6, 3.4 / 6])


@pytest.mark.parametrize("teachers", [2, 5, 20])
def test_an_answer_that_the_sample_never_had_claims_what_its_teacher_has(teachers: int) -> None:
    views = rows(np.random.default_rng(0).random((200, teachers)))
    start = by_rank(views, one_script(views))
    other = rows(np.full((1, teachers), 0.5), np.eye(1, teachers, dtype=np.int64))
    np.testing.assert_allclose(odds(start, other)[0, 0], logit(1 / teachers), atol=1e-9)


@given(scale=st.floats(0.01, 100.0), shift=st.floats(-1.0, 1.0), seed=st.integers(0, 1000))
def test_ranks_do_not_ask_for_the_scale_of_a_label(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    certainty, answers = rng.random((30, 2)), rng.integers(2, size=(30, 2))
    other = np.where(answers == 1, scale * certainty + shift, certainty)
    found = [odds(by_rank(v, one_script(v)), v) for v in (rows(certainty, answers), rows(other, answers))]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize(
    "start", [ByScore(0.25), by_rank(rows(np.random.default_rng(0).random((9, 2))), np.zeros(9, np.int64))]
)
def test_it_comes_back_from_its_arrays(start: ByScore | ByRank) -> None:
    again = start_of(start.arrays())
    assert type(again) is type(start)
    some = rows(np.random.default_rng(1).random((6, 2)))
    np.testing.assert_array_equal(odds(again, some), odds(start, some))


def test_no_rows_have_no_odds() -> None:
    some, none = rows(np.random.default_rng(0).random((9, 2))), rows(np.zeros((0, 2)))
    assert by_rank(some, one_script(some))(none, NOWHERE).shape == (0, 2)


def test_arrays_of_something_else_are_refused() -> None:
    with pytest.raises(KeyError):
        start_of({"knots": np.zeros(3)})
