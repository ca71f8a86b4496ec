"""Co-training: what it finds in corpora whose owners are known, what it leaves alone, and how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muki_ray import cotraining
from muki_ray.cotraining import CoTraining, fit_cotraining, misranked
from muki_ray.cotraining_start import ByRank, ByScore
from muki_ray.cotraining_views import Views
from muki_ray.errors import StoreError

WORDS = (
    ("ball", "goal", "team", "coach", "league"),
    ("bank", "loan", "rate", "stock", "fund"),
    ("virus", "cell", "gene", "dose", "trial"),
)


def corpus(
    rows: int, share: tuple[float, ...], overlap: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Owner `[N]`, scores `[N, M]` that tell it badly, texts that tell it by their words."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(len(share), size=rows, p=share)
    own = np.eye(len(share))[owner]
    noisy = own + overlap * rng.standard_normal(own.shape)
    return owner, noisy, written(owner, rng)


def leaning(rows: int, share: tuple[float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The first teacher is nearly as sure of foreign rows as of its own: ties are many, clear cases mostly its own."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(2, size=rows, p=share)
    doubt = np.where(np.eye(2)[owner] > 0, 0.02, (0.03, 0.2)) * rng.exponential(size=(rows, 2))
    return owner, 1 - np.minimum(doubt, 0.9), written(owner, rng)


def written(owner: np.ndarray, rng: np.random.Generator) -> list[str]:
    """A text per row: two words of its owner, two of anyone."""
    texts = []
    for m in owner:
        topical, any_word = rng.choice(WORDS[m], 2), rng.choice([w for some in WORDS for w in some], 2)
        texts.append(" ".join([*topical, *any_word, f"row{rng.integers(10_000)}"]))
    return texts


def views(scores_NM: np.ndarray, texts: list[str], answers_NM: np.ndarray | None = None) -> Views:
    """Rows of which nothing but the score is known; every teacher gives all of them the same answer, unless told."""
    answers_NM = np.zeros(scores_NM.shape, np.int64) if answers_NM is None else answers_NM
    return Views(scores_NM, scores_NM, answers_NM, (2,) * scores_NM.shape[1], texts)


def beliefs(scores_NM: np.ndarray, texts: list[str]) -> np.ndarray:
    """What is believed of rows that were learned from."""
    rows = views(scores_NM, texts)
    return fit_cotraining(rows)(rows)


def accuracy(scores_NM: np.ndarray, owner_N: np.ndarray) -> float:
    return float((scores_NM.argmax(axis=1) == owner_N).mean())


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.8, 0.2), (0.4, 0.3, 0.3)])
def test_it_mends_what_scores_get_wrong(share: tuple[float, ...]) -> None:
    owner, noisy, texts = corpus(900, share, 0.9)
    fitted = fit_cotraining(views(noisy, texts))
    before, after = 1 - accuracy(noisy, owner), 1 - accuracy(fitted(views(noisy, texts)), owner)
    assert before > 0.15
    assert after < 0.7 * before
    # and on rows that it has not seen
    owner, noisy, texts = corpus(300, share, 0.9, seed=1)
    assert 1 - accuracy(fitted(views(noisy, texts)), owner) < 0.7 * (1 - accuracy(noisy, owner))


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.4, 0.6), (0.8, 0.2)])
def test_scores_that_lean_to_one_teacher_do_not_take_the_choice_along(share: tuple[float, float]) -> None:
    owner, scores_NM, texts = leaning(900, share)
    before = 1 - accuracy(scores_NM, owner)
    belief = beliefs(scores_NM, texts)
    assert before > 0.15
    assert 1 - accuracy(belief, owner) < 0.6 * before
    np.testing.assert_allclose(belief.mean(axis=0), share, atol=0.1)


CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувщхыз")


def two_scripts(
    share_of_first: tuple[float, float], lean: float
) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Rows in Latin and in Cyrillic script.

    Args:
        share_of_first: share of the rows that the first teacher owns, in either script.
        lean: how much surer each teacher is of one script, the first of Latin, whoever owns the row.
    """
    rng = np.random.default_rng(0)
    cyrillic = np.arange(1200) % 2
    owner = (rng.random(1200) >= np.take(share_of_first, cyrillic)).astype(int)
    own = np.eye(2)[owner] + lean * np.eye(2)[cyrillic] + 0.5 * rng.standard_normal((1200, 2))
    texts = [t.translate(CYRILLIC) if c else t for t, c in zip(written(owner, rng), cyrillic, strict=True)]
    return owner, own, texts, cyrillic


def test_being_surer_of_a_script_is_not_knowing_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, noisy, texts, cyrillic = two_scripts((0.5, 0.5), 0.6)

    def wrong() -> float:
        return 1 - accuracy(beliefs(noisy, texts), owner)

    belief = beliefs(noisy, texts)
    mended = wrong()
    assert mended < 0.5 * (1 - accuracy(noisy, owner))
    for part in (0, 1):
        np.testing.assert_allclose(belief[cyrillic == part].mean(axis=0), [0.5, 0.5], atol=0.15)
    monkeypatch.setattr(cotraining, "groups", lambda texts: ["LATIN"])
    assert wrong() > 1.5 * mended, "taken together, the script would be taken for the owner"


@pytest.mark.parametrize(("share", "lean"), [((0.9, 0.1), 0.0), ((0.7, 0.3), 0.3)])
def test_a_script_that_does_tell_the_owner_still_does(share: tuple[float, float], lean: float) -> None:
    owner, noisy, texts, _ = two_scripts(share, lean)
    belief = beliefs(noisy, texts)
    assert 1 - accuracy(belief, owner) < 0.6 * (1 - accuracy(noisy, owner))


def boastful(share: tuple[float, ...], rows: int = 1200) -> tuple[np.ndarray, Views]:
    """Teachers of two labels that are certain of what they know, and of foreign rows as certain, each in its own measure.

    Each is a little less certain of foreign rows than of its own with the same answer: ranks tell, levels do not. Its second label
    is always a hundred times nearer to certainty than its first.
    """
    rng = np.random.default_rng(0)
    owner = rng.choice(len(share), size=rows, p=share)
    answers = rng.integers(2, size=(rows, len(share)))
    level = np.array([0.1, 0.001])[answers] * 4.0 ** -np.arange(len(share))
    doubt = np.where(np.eye(len(share))[owner] > 0, 1.0, 4.0) * rng.exponential(size=level.shape)
    return owner, views(1 - np.minimum(level * doubt, 1.0), written(owner, rng), answers)


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.7, 0.3), (0.4, 0.35, 0.25)])
def test_ranks_mend_what_scales_of_their_own_spoil(
    share: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, rows = boastful(share)
    by_rank = fit_cotraining(rows)
    assert isinstance(by_rank.start, ByRank)
    wrong = 1 - accuracy(by_rank(rows), owner)
    again = CoTraining.from_bytes(by_rank.to_bytes())
    np.testing.assert_array_equal(again(rows), by_rank(rows))
    monkeypatch.setattr(cotraining, "_WELL_RANKED", 1.0)  # whatever comes of the scores will do
    by_score = fit_cotraining(rows)
    assert isinstance(by_score.start, ByScore)
    assert wrong < 0.5 * (1 - accuracy(by_score(rows), owner))


@pytest.mark.parametrize("noise", [0.25, 0.4])
@pytest.mark.parametrize("share", [(0.95, 0.05), (0.99, 0.01), (1.0, 0.0)])
@pytest.mark.parametrize("answers", [1, 4])
def test_where_one_teacher_owns_nearly_all_scores_stay_the_start(
    share: tuple[float, float], noise: float, answers: int
) -> None:
    """Its own rows fill all ranks, so ranks would give many of them to the other."""
    owner, noisy, texts = corpus(900, share, noise)
    said = np.random.default_rng(0).integers(answers, size=noisy.shape)
    rows = Views(noisy, noisy, said, (4, 4), texts)
    assert 1 - accuracy(fit_cotraining(rows)(rows), owner) < 0.03


@pytest.mark.parametrize("noise", [0.25, 0.4])
def test_a_script_of_its_own_is_left_to_each_teacher(noise: float) -> None:
    rng = np.random.default_rng(0)
    owner = np.arange(900) % 2
    noisy = np.eye(2)[owner] + noise * rng.standard_normal((900, 2))
    texts = [t.translate(CYRILLIC) if m else t for t, m in zip(written(owner, rng), owner, strict=True)]
    assert 1 - accuracy(beliefs(noisy, texts), owner) < 0.03


def test_shares_are_counted_again_while_ranks_agree_better(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, rows = boastful((0.85, 0.15))
    counted = fit_cotraining(rows)
    monkeypatch.setattr(cotraining, "_RECOUNTS", 0)
    once = fit_cotraining(rows)
    assert isinstance(counted.start, ByRank) and isinstance(once.start, ByRank)
    assert 1 - accuracy(counted(rows), owner) < 0.8 * (1 - accuracy(once(rows), owner))


def test_misranked_by_hand() -> None:
    certainty = np.array([[0.9, 0.0], [0.5, 0.0], [0.5, 0.0], [0.1, 0.0], [0.7, 0.0]])
    answers = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 0]])
    rows, group = views(certainty, ["a"] * 5, answers), np.zeros(5, np.int64)
    own = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    belief = np.stack([own, 1 - own], axis=1)
    # first teacher, first answer: of four pairs three are right and one a tie; the second's certainty says nothing
    first, second = 4 * 0.125 / 4, 3 * 2 * 0.5 / 5
    assert misranked(rows, group, belief) == pytest.approx((first + second) / (4 / 4 + 6 / 5))
    # the other way about, and where there is nothing to compare
    assert misranked(rows, group, 1 - belief) == pytest.approx((4 * 0.875 / 4 + second) / (4 / 4 + 6 / 5))
    assert misranked(rows, group, np.tile([1.0, 0.0], (5, 1))) == 0.5


def test_ranks_are_compared_within_a_script_alone() -> None:
    certainty = np.array([[0.9], [0.8], [0.2], [0.1]])
    rows, belief = views(certainty, ["a"] * 4), np.array([[1.0], [0.0], [1.0], [0.0]])
    assert misranked(rows, np.array([0, 0, 1, 1]), belief) == 0.0
    assert misranked(rows, np.zeros(4, np.int64), belief) == 0.25


def test_beliefs_of_a_row_do_not_depend_on_its_own_label() -> None:
    """Cross-fitting: a row whose text and score contradict each other is judged by others of its text."""
    _, noisy, texts = corpus(600, (0.5, 0.5), 0.3)
    texts[0], noisy[0] = "ball goal team coach league", np.array([0.0, 1.5])
    fitted = fit_cotraining(views(noisy, texts))
    with_it = fitted(views(noisy[:1], texts[:1]))
    without = fit_cotraining(views(noisy[1:], texts[1:]))(views(noisy[:1], texts[:1]))
    np.testing.assert_allclose(with_it, without, atol=0.05)


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.8, 0.2)])
def test_texts_that_say_nothing_leave_the_choice_to_the_scores(share: tuple[float, float]) -> None:
    lost = []
    for seed in range(3):
        owner, noisy, _ = corpus(600, share, 0.5, seed)
        rng = np.random.default_rng(100 + seed)
        texts = [" ".join(rng.choice(["aa", "bb", "cc", "dd"], 4)) for _ in owner]
        belief = beliefs(noisy, texts)
        lost.append(accuracy(noisy, owner) - accuracy(belief, owner))
    assert np.mean(lost) < 0.03


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 12), teachers=st.integers(1, 4), level=st.floats(-5, 5), seed=st.integers(0, 2**20)
)
def test_beliefs_are_probabilities_whatever_the_scores(
    rows: int, teachers: int, level: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores_NM = np.round(level * rng.standard_normal((rows, teachers)), 1)
    texts = [str(rng.choice(["", "a", "a b", "您好", "zz"])) for _ in range(rows)]
    belief = beliefs(scores_NM, texts)
    assert belief.shape == (rows, teachers)
    np.testing.assert_allclose(belief.sum(axis=1), 1.0)
    assert (belief >= 0).all()


def test_equal_teachers_stay_equal() -> None:
    scores_NM = np.full((40, 2), 0.7)
    texts = [f"text {i}" for i in range(40)]
    np.testing.assert_allclose(beliefs(scores_NM, texts), 0.5)


def test_a_shard_at_a_time_gives_the_same_beliefs() -> None:
    _, noisy, texts = corpus(200, (0.5, 0.5), 0.5)
    fitted = fit_cotraining(views(noisy, texts))
    halves = [fitted(views(noisy[part], texts[part])) for part in (slice(0, 70), slice(70, 200))]
    np.testing.assert_allclose(np.concatenate(halves), fitted(views(noisy, texts)), rtol=1e-12)
    assert fitted(views(noisy[:0], [])).shape == (0, 2)


def test_it_comes_back_from_bytes_and_equal_fits_are_equal_bytes() -> None:
    _, noisy, texts = corpus(120, (0.5, 0.5), 0.5)
    fitted = fit_cotraining(views(noisy, texts))
    content = fitted.to_bytes()
    again = CoTraining.from_bytes(content)
    np.testing.assert_array_equal(again(views(noisy, texts)), fitted(views(noisy, texts)))
    assert again.to_bytes() == content == fit_cotraining(views(noisy, texts)).to_bytes()


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_damaged_bytes_are_refused(cut: int) -> None:
    _, noisy, texts = corpus(30, (0.5, 0.5), 0.5)
    with pytest.raises(StoreError, match="delete the supervision folder"):
        CoTraining.from_bytes(fit_cotraining(views(noisy, texts)).to_bytes()[:cut])


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="got none"):
        fit_cotraining(views(np.zeros((0, 2)), []))
