"""A bias per teacher that gives each its share of the corpus."""

from __future__ import annotations

import numpy as np
import pytest
from quality_bias import fit_bias
from scipy.special import logsumexp, softmax


def test_each_block_gets_the_teachers_share() -> None:
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=(500, 2)), 3 + generator.normal(size=(500, 4))]
    belief = generator.dirichlet([6.0, 2.0], size=500)
    bias = fit_bias(logits, belief)
    assert abs(bias.sum()) < 1e-9
    assert bias[0] > 1.0, "the second teacher's logits are larger and take nearly all"
    mass = softmax(np.stack([logsumexp(z, axis=1) for z in logits], axis=1) + bias, axis=1)
    np.testing.assert_allclose(mass.mean(axis=0), belief.mean(axis=0), atol=1e-3)


def test_nothing_to_mend() -> None:
    logits = [np.zeros((4, 3)), np.zeros((4, 3))]
    np.testing.assert_allclose(fit_bias(logits, np.full((4, 2), 0.5)), 0.0, atol=1e-6)


def test_no_rows() -> None:
    with pytest.raises(ValueError, match="got none"):
        fit_bias([np.zeros((0, 2))], np.zeros((0, 1)))
