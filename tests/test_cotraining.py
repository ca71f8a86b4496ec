"""Co-training: what it finds in corpora whose owners are known, what it leaves alone, and how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muki_ray import cotraining
from muki_ray.cotraining import CoTraining, fit_cotraining, score_view, shares
from muki_ray.cotraining_start import ByRank, ByScore
from muki_ray.errors import StoreError
from muki_ray.uncertainty import SAMPLED, SCORES, UNBOUNDED, TeacherEvidence, scores

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


def accuracy(scores_NM: np.ndarray, owner_N: np.ndarray) -> float:
    return float((scores_NM.argmax(axis=1) == owner_N).mean())


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.8, 0.2), (0.4, 0.3, 0.3)])
def test_it_mends_what_scores_get_wrong(share: tuple[float, ...]) -> None:
    owner, noisy, texts = corpus(900, share, 0.9)
    fitted = fit_cotraining(noisy, noisy, texts)
    before, after = 1 - accuracy(noisy, owner), 1 - accuracy(fitted(noisy, noisy, texts), owner)
    assert before > 0.15
    assert after < 0.7 * before
    # and on rows that it has not seen
    owner, noisy, texts = corpus(300, share, 0.9, seed=1)
    assert 1 - accuracy(fitted(noisy, noisy, texts), owner) < 0.7 * (1 - accuracy(noisy, owner))


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.4, 0.6), (0.8, 0.2)])
def test_scores_that_lean_to_one_teacher_do_not_take_the_choice_along(share: tuple[float, float]) -> None:
    owner, scores_NM, texts = leaning(900, share)
    before = 1 - accuracy(scores_NM, owner)
    belief = fit_cotraining(scores_NM, scores_NM, texts)(scores_NM, scores_NM, texts)
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
        return 1 - accuracy(fit_cotraining(noisy, noisy, texts)(noisy, noisy, texts), owner)

    belief = fit_cotraining(noisy, noisy, texts)(noisy, noisy, texts)
    mended = wrong()
    assert mended < 0.5 * (1 - accuracy(noisy, owner))
    for part in (0, 1):
        np.testing.assert_allclose(belief[cyrillic == part].mean(axis=0), [0.5, 0.5], atol=0.15)
    monkeypatch.setattr(cotraining, "groups", lambda texts: ["LATIN"])
    assert wrong() > 1.5 * mended, "taken together, the script would be taken for the owner"


@pytest.mark.parametrize(("share", "lean"), [((0.9, 0.1), 0.0), ((0.7, 0.3), 0.3)])
def test_a_script_that_does_tell_the_owner_still_does(share: tuple[float, float], lean: float) -> None:
    owner, noisy, texts, _ = two_scripts(share, lean)
    belief = fit_cotraining(noisy, noisy, texts)(noisy, noisy, texts)
    assert 1 - accuracy(belief, owner) < 0.6 * (1 - accuracy(noisy, owner))


def boastful(share: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Teachers that tell their own rows well, each on a scale of its own, so that the last one wins most."""
    rng = np.random.default_rng(0)
    owner = rng.choice(len(share), size=1200, p=share)
    doubt = np.where(np.eye(len(share))[owner] > 0, 0.1, 0.4) * rng.exponential(size=(1200, len(share)))
    return owner, 1 - np.minimum(doubt * 5.0 ** -np.arange(len(share)), 1.0), written(owner, rng)


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.8, 0.2)])
def test_ranks_mend_what_scales_of_their_own_spoil(
    share: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, boasts, texts = boastful(share)
    by_score = fit_cotraining(boasts, boasts, texts)
    assert isinstance(by_score.start, ByScore)  # here the scores are good enough
    monkeypatch.setattr(cotraining, "_DOUBTFUL", 0.0)
    monkeypatch.setattr(cotraining, "_RESOLVED", 1.0)
    by_rank = fit_cotraining(boasts, boasts, texts)
    assert isinstance(by_rank.start, ByRank)
    wrong_before, wrong = (1 - accuracy(one(boasts, boasts, texts), owner) for one in (by_score, by_rank))
    assert wrong < 0.75 * wrong_before
    again = CoTraining.from_bytes(by_rank.to_bytes())
    np.testing.assert_array_equal(again(boasts, boasts, texts), by_rank(boasts, boasts, texts))
    # what leaves nearly as much doubt is not worth it
    monkeypatch.setattr(cotraining, "_RESOLVED", 0.0)
    assert isinstance(fit_cotraining(boasts, boasts, texts).start, ByScore)


def test_shares_follow_from_rows_that_scores_are_sure_of() -> None:
    """40 rows are the first teacher's, 60 the second's; scores know 20 of each and lean to the first in the rest."""
    owner = np.repeat([0, 1], [40, 60])
    said = np.where(owner[:, None] == 0, (0.8, 0.2), (0.3, 0.7))
    first = np.full((100, 2), (0.51, 0.49))
    first[:20], first[-20:] = (0.95, 0.05), (0.05, 0.95)
    assert first.mean(axis=0)[0] > 0.5
    np.testing.assert_allclose(shares(said, first), (0.4, 0.6), atol=0.02)


def test_shares_stay_those_of_the_scores_where_texts_say_nothing() -> None:
    rng = np.random.default_rng(0)
    first = rng.dirichlet((3, 1, 1), 300)
    said = np.array([0.6, 0.2, 0.2]) + 1e-3 * rng.standard_normal((300, 3))
    np.testing.assert_allclose(shares(said, first), first.mean(axis=0), atol=0.02)


def test_a_teacher_that_no_row_prefers_keeps_its_share() -> None:
    first = np.tile([0.6, 0.3, 0.1], (50, 1))
    np.testing.assert_allclose(shares(first, first), (0.6, 0.3, 0.1), atol=0.01)


def test_beliefs_of_a_row_do_not_depend_on_its_own_label() -> None:
    """Cross-fitting: a row whose text and score contradict each other is judged by others of its text."""
    _, noisy, texts = corpus(600, (0.5, 0.5), 0.3)
    texts[0], noisy[0] = "ball goal team coach league", np.array([0.0, 1.5])
    fitted = fit_cotraining(noisy, noisy, texts)
    with_it = fitted(noisy[:1], noisy[:1], texts[:1])
    without = fit_cotraining(noisy[1:], noisy[1:], texts[1:])(noisy[:1], noisy[:1], texts[:1])
    np.testing.assert_allclose(with_it, without, atol=0.05)


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.8, 0.2)])
def test_texts_that_say_nothing_leave_the_choice_to_the_scores(share: tuple[float, float]) -> None:
    lost = []
    for seed in range(3):
        owner, noisy, _ = corpus(600, share, 0.5, seed)
        rng = np.random.default_rng(100 + seed)
        texts = [" ".join(rng.choice(["aa", "bb", "cc", "dd"], 4)) for _ in owner]
        belief = fit_cotraining(noisy, noisy, texts)(noisy, noisy, texts)
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
    belief = fit_cotraining(scores_NM, scores_NM, texts)(scores_NM, scores_NM, texts)
    assert belief.shape == (rows, teachers)
    np.testing.assert_allclose(belief.sum(axis=1), 1.0)
    assert (belief >= 0).all()


def test_equal_teachers_stay_equal() -> None:
    scores_NM = np.full((40, 2), 0.7)
    texts = [f"text {i}" for i in range(40)]
    np.testing.assert_allclose(fit_cotraining(scores_NM, scores_NM, texts)(scores_NM, scores_NM, texts), 0.5)


def test_a_shard_at_a_time_gives_the_same_beliefs() -> None:
    _, noisy, texts = corpus(200, (0.5, 0.5), 0.5)
    fitted = fit_cotraining(noisy, noisy, texts)
    halves = [fitted(noisy[part], noisy[part], texts[part]) for part in (slice(0, 70), slice(70, 200))]
    np.testing.assert_allclose(np.concatenate(halves), fitted(noisy, noisy, texts), rtol=1e-12)
    assert fitted(noisy[:0], noisy[:0], []).shape == (0, 2)


def test_it_comes_back_from_bytes_and_equal_fits_are_equal_bytes() -> None:
    _, noisy, texts = corpus(120, (0.5, 0.5), 0.5)
    fitted = fit_cotraining(noisy, noisy, texts)
    content = fitted.to_bytes()
    again = CoTraining.from_bytes(content)
    np.testing.assert_array_equal(again(noisy, noisy, texts), fitted(noisy, noisy, texts))
    assert again.to_bytes() == content == fit_cotraining(noisy, noisy, texts).to_bytes()


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_damaged_bytes_are_refused(cut: int) -> None:
    _, noisy, texts = corpus(30, (0.5, 0.5), 0.5)
    with pytest.raises(StoreError, match="delete the supervision folder"):
        CoTraining.from_bytes(fit_cotraining(noisy, noisy, texts).to_bytes()[:cut])


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="got none"):
        fit_cotraining(np.zeros((0, 2)), np.zeros((0, 2)), [])


def test_the_scores_view_has_all_that_the_evidence_allows() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 5)
    plain = TeacherEvidence(rng.standard_normal((5, 3)))
    sampled = TeacherEvidence(plain.logits, probs, rng.random(5), rng.random(5) * 0.1, rng.random(5))
    found = score_view([sampled, sampled])
    bounded = set(SCORES) - UNBOUNDED
    assert found.shape == (5, 2 * (len(SCORES) + len(bounded)))
    certainty = scores("mc_entropy", [sampled, sampled])
    np.testing.assert_allclose(found[:, :2], certainty)
    np.testing.assert_allclose(found[:, 2 * len(SCORES) : 2 * len(SCORES) + 2], -np.log(1.001 - certainty))
    plain_names = set(SCORES) - SAMPLED
    found = score_view([plain, plain])
    assert found.shape == (5, 2 * (len(plain_names) + len(plain_names & bounded)))
    np.testing.assert_allclose(found[:, :2], scores("entropy", [plain, plain]))
