"""Co-training: what it finds in corpora whose owners are known, what it leaves alone, and how it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muki_ray import cotraining
from muki_ray.cotraining import CoTraining, fit_cotraining, misranked
from muki_ray.cotraining_start import ByRank, ByScore
from muki_ray.cotraining_views import Views
from muki_ray.errors import StoreError
from muki_ray.text_view import keys

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


def wordless(owner: np.ndarray) -> list[str]:
    """Texts of which no two share a word."""
    return [f"text{i:05d}" for i in range(len(owner))]


def meant(owner: np.ndarray, noise: float) -> np.ndarray:
    """Embeddings `[N, 8]` of which the first columns tell the owner."""
    rng = np.random.default_rng(1)
    told = np.zeros((len(owner), 8), np.float32)
    told[np.arange(len(owner)), owner] = 1.0
    return (told + noise * rng.standard_normal(told.shape)).astype(np.float32)


def test_an_encoder_mends_what_words_do_not_tell() -> None:
    owner, rows = boastful((0.5, 0.5))
    rows = replace(rows, texts=wordless(owner))
    alone, both = fit_cotraining(rows), fit_cotraining(rows, lambda texts: meant(owner, 0.4))
    wrong = 1 - accuracy(both(rows), owner)
    assert wrong < 0.5 * (1 - accuracy(alone(rows), owner))
    again = CoTraining.from_bytes(both.to_bytes())
    np.testing.assert_array_equal(again(rows), both(rows))
    # in any company, and to the last row: what it remembers goes by the text
    some = slice(3, 700, 5)
    part = Views(
        rows.scores_NM[some], rows.seen_NX[some], rows.answers_NM[some], rows.labels_M, rows.texts[some]
    )
    np.testing.assert_array_equal(both(part), both(rows)[some])


def seldom(owner: np.ndarray, words: int) -> list[str]:
    """Texts of two rare words: one of as many that the owner has, one of anyone's."""
    rng = np.random.default_rng(2)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    known = ["".join(rng.choice(letters, 6)) for _ in range(words * (owner.max() + 1))]
    return [
        f"{known[m * words + rng.integers(words)]} {rng.choice(known)} {i:05d}" for i, m in enumerate(owner)
    ]


def test_what_an_encoder_has_not_read_stays_as_it_was_where_words_say_nothing() -> None:
    owner, rows = boastful((0.7, 0.3), 400)
    rows = replace(rows, texts=seldom(owner, 1000))
    alone, both = fit_cotraining(rows), fit_cotraining(rows, lambda texts: meant(owner, 0.3))
    assert len(both.key_R) == len(rows)
    unread = replace(rows, texts=[f"{text[:-5]}99999" for text in rows.texts])
    assert 1 - accuracy(both(rows), owner) < 0.1 * (1 - accuracy(alone(rows), owner))
    np.testing.assert_array_equal(
        both(unread), alone(unread)
    )  # words say nothing here, so they learn nothing


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.7, 0.3), (0.4, 0.35, 0.25)])
def test_noise_from_an_encoder_does_no_harm(share: tuple[float, ...]) -> None:
    owner, rows = boastful(share)
    rows = replace(rows, texts=seldom(owner, 200))
    noise = np.random.default_rng(0).standard_normal((len(owner), 64)).astype(np.float32)
    assert fit_cotraining(rows, lambda texts: noise).to_bytes() == fit_cotraining(rows).to_bytes()


def test_an_encoder_that_says_nothing_changes_nothing() -> None:
    owner, rows = boastful((0.7, 0.3))
    rows = replace(rows, texts=wordless(owner))
    alone = fit_cotraining(rows).to_bytes()
    assert fit_cotraining(rows, lambda texts: np.zeros((len(owner), 16), np.float32)).to_bytes() == alone
    assert fit_cotraining(rows, lambda texts: None).to_bytes() == alone


def test_an_encoder_is_asked_only_where_words_say_little_and_something_is_to_be_mended() -> None:
    def embed(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("asked")

    owner, rows = boastful((0.5, 0.5))
    fit_cotraining(rows, embed)
    with pytest.raises(AssertionError, match="asked"):
        fit_cotraining(replace(rows, texts=wordless(owner)), embed)
    fit_cotraining(
        views(rows.scores_NM[:, :1], wordless(owner)), embed
    )  # of one teacher there is nothing to say


def test_equal_rows_are_remembered_once_with_the_mean_of_their_beliefs() -> None:
    belief = np.array([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4]])
    seen = np.array([[0.1, 0.5], [0.2, 0.5], [0.1, 0.5]])
    key_R, belief_RM = cotraining._remembered(views(seen, ["a", "b", "a"]), belief)
    assert key_R.tolist() == sorted(key_R.tolist()) and len(key_R) == 2
    kept = dict(zip(key_R.tolist(), belief_RM.tolist(), strict=True))
    a, b = keys(["a", "b"], seen[:2]).tolist()
    np.testing.assert_allclose(kept[a], [0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(kept[b], [0.9, 0.1], rtol=1e-6)


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
