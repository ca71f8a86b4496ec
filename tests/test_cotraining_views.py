"""What co-training sees of rows: all scores, the answers, and parts put together."""

from __future__ import annotations

import numpy as np

from muki_ray.cotraining_views import joined, score_view, views_of
from muki_ray.uncertainty import SAMPLED, SCORES, UNBOUNDED, TeacherEvidence, scores


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


def test_views_know_each_teachers_answer_and_its_certainty() -> None:
    one = TeacherEvidence(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
    two = TeacherEvidence(np.array([[0.0, 1.0], [0.0, 5.0]]))
    found = views_of([one, two], np.zeros((2, 2)), ["a", "b"])
    np.testing.assert_array_equal(found.answers_NM, [[1, 1], [0, 1]])
    assert found.labels_M == (3, 2) and len(found) == 2
    np.testing.assert_allclose(found.certainty_NM, scores("entropy", [one, two]))


def test_parts_are_put_together_in_their_order() -> None:
    rng = np.random.default_rng(0)
    evidence = [TeacherEvidence(rng.standard_normal((5, 3))) for _ in range(2)]
    scores_NM, texts = rng.random((5, 2)), list("abcde")
    whole = views_of(evidence, scores_NM, texts)
    halves = [
        views_of([TeacherEvidence(one.logits[part]) for one in evidence], scores_NM[part], texts[part])
        for part in (slice(0, 2), slice(2, 5))
    ]
    again = joined(halves)
    for name in ("scores_NM", "seen_NX", "answers_NM"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert again.labels_M == whole.labels_M and again.texts == texts
