"""Embeddings as a view: scripts apart, few axes, one length."""

from __future__ import annotations

import numpy as np

from muki_ray.embedding_view import principal


def test_by_hand() -> None:
    """Two rows each of two scripts: less their means they lie on one line."""
    rows = np.array([[1.0, 5.0], [3.0, 5.0], [11.0, 0.0], [17.0, 0.0]], np.float32)
    before = rows.copy()
    seen = principal(rows, np.array([0, 0, 1, 1]))
    along = np.array([-1.0, 1.0, -3.0, 3.0]) * 3 / np.sqrt(5)
    np.testing.assert_allclose(np.abs(seen[:, 0]), np.abs(along), rtol=1e-9)
    np.testing.assert_allclose(seen[:, 0] * np.sign(seen[1, 0]), along, rtol=1e-9)
    np.testing.assert_array_equal(rows, before)


def test_the_mean_row_has_length_three_and_axes_are_the_widest() -> None:
    rows = np.random.default_rng(0).standard_normal((600, 300)) * np.linspace(1.0, 0.1, 300)
    seen = principal(rows, np.zeros(600, np.int64))
    assert seen.shape == (600, 200)
    assert np.isclose((seen**2).sum(axis=1).mean(), 9.0)
    centred = rows - rows.mean(axis=0)
    widest = np.sort(np.linalg.eigvalsh(centred.T @ centred))[-200:]
    np.testing.assert_allclose((seen**2).sum(axis=0) / (seen**2).sum(), widest / widest.sum(), rtol=1e-6)


def test_rows_that_are_all_alike_have_no_axes() -> None:
    assert principal(np.ones((5, 4), np.float32), np.zeros(5, np.int64)).shape == (5, 0)
    assert np.isfinite(principal(np.zeros((5, 4), np.float32), np.zeros(5, np.int64))).all()
