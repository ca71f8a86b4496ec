"""Co-training: what it finds in corpora whose owners are known, what it leaves alone, and how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muki_ray.cotraining import CoTraining, fit_cotraining, score_view
from muki_ray.errors import StoreError
from muki_ray.uncertainty import SAMPLED, SCORES, TeacherEvidence, scores

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
    texts = []
    for m in owner:
        topical, any_word = rng.choice(WORDS[m], 2), rng.choice([w for some in WORDS for w in some], 2)
        texts.append(" ".join([*topical, *any_word, f"row{rng.integers(10_000)}"]))
    return owner, noisy, texts


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


def test_beliefs_of_a_row_do_not_depend_on_its_own_label() -> None:
    """Cross-fitting: a row whose text and score contradict each other is judged by others of its text."""
    _, noisy, texts = corpus(600, (0.5, 0.5), 0.3)
    texts[0], noisy[0] = "ball goal team coach league", np.array([0.0, 1.5])
    fitted = fit_cotraining(noisy, noisy, texts)
    with_it = fitted(noisy[:1], noisy[:1], texts[:1])
    without = fit_cotraining(noisy[1:], noisy[1:], texts[1:])(noisy[:1], noisy[:1], texts[:1])
    np.testing.assert_allclose(with_it, without, atol=0.05)


def test_texts_that_say_nothing_leave_the_choice_to_the_scores() -> None:
    owner, noisy, _ = corpus(600, (0.5, 0.5), 0.5)
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["aa", "bb", "cc", "dd"], 4)) for _ in owner]
    belief = fit_cotraining(noisy, noisy, texts)(noisy, noisy, texts)
    assert accuracy(belief, owner) > accuracy(noisy, owner) - 0.02


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
    assert found.shape == (5, 2 * len(SCORES))
    np.testing.assert_allclose(found[:, :2], scores("entropy", [sampled, sampled]))
    assert score_view([plain, plain]).shape == (5, 2 * (len(SCORES) - len(SAMPLED)))
