"""Targets of the baselines against values worked by hand, and what must hold of any."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from muki_ray.baselines.targets import (
    baseline_supervision,
    baseline_targets,
    blocks,
    uhc_targets,
    vanilla_kd_targets,
)
from muki_ray.config_method import BaselineMethod, CflMethod, DfaMethod, UhcMethod, VanillaKdMethod
from muki_ray.labels import TeacherLabels, join, teacher_labels
from muki_ray.uncertainty import softmax

# union: a, b, c; both know a
SPACE = join([TeacherLabels("one", ("b", "a")), TeacherLabels("two", ("c", "a"))])
# e^0 : e^log2 = 1 : 2
LOG2, LOG4 = math.log(2), math.log(4)
ONE, TWO = np.array([[0.0, LOG2]]), np.array([[LOG4, 0.0]])
ROWS = arrays(np.float64, (3, 4), elements=st.floats(-30, 30))


def test_vanilla_by_hand() -> None:
    # side by side 1, 2, 4, 1 of 8: b gets 1, c gets 4, a gets 2 + 1
    found = vanilla_kd_targets([ONE, TWO], SPACE.index, 3, 1.0)
    np.testing.assert_allclose(found, [[3 / 8, 1 / 8, 4 / 8]])


def test_vanilla_by_hand_at_temperature_2() -> None:
    # the roots: 1, sqrt 2, 2, 1
    total = 4 + math.sqrt(2)
    found = vanilla_kd_targets([ONE, TWO], SPACE.index, 3, 2.0)
    np.testing.assert_allclose(found, [[(math.sqrt(2) + 1) / total, 1 / total, 2 / total]])


@given(ROWS, st.floats(0.1, 10))
def test_vanilla_with_one_teacher_is_its_softmax(z: np.ndarray, temperature: float) -> None:
    places = np.array([2, 0, 3, 1])
    found = vanilla_kd_targets([z], [places], 4, temperature)
    np.testing.assert_allclose(found[:, places], softmax(z, temperature), atol=1e-12)


def test_the_louder_teacher_gets_the_mass() -> None:
    """What MUKI holds against it: the same opinion at ten times the scale wins."""
    found = vanilla_kd_targets([10 * ONE, ONE], [np.array([0, 1]), np.array([2, 3])], 4, 1.0)
    assert found[0, :2].sum() > 0.99


def test_uhc_by_hand() -> None:
    found = uhc_targets([ONE, TWO], SPACE.index, 3, 1.0)
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3, 4 / 5, 1 / 5]])
    assert blocks(SPACE.index) == ((1, 0), (2, 0))


def test_merged_labels_are_one_place() -> None:
    merged = teacher_labels("one", {0: "x", 1: "y", 2: "z"}, {"x": "a", "z": "a", "y": "b"}, merge=True)
    space = join([merged, TeacherLabels("two", ("c", "a"))])
    assert blocks(space.index) == ((0, 1), (2, 0))
    z = np.array([[0.0, LOG2, LOG4]])  # 1, 2, 4 of 7: a gets 1 + 4
    np.testing.assert_allclose(uhc_targets([z, TWO], space.index, 3, 1.0), [[5 / 7, 2 / 7, 4 / 5, 1 / 5]])
    np.testing.assert_allclose(
        vanilla_kd_targets([z, TWO], space.index, 3, 1.0), [[6 / 12, 2 / 12, 4 / 12]], atol=1e-12
    )


@given(ROWS, ROWS, st.floats(0.1, 10))
def test_targets_are_distributions(one: np.ndarray, two: np.ndarray, temperature: float) -> None:
    index = [np.array([0, 1, 2, 3]), np.array([3, 4, 5, 0])]
    vanilla = vanilla_kd_targets([one, two], index, 6, temperature)
    side_by_side = uhc_targets([one, two], index, 6, temperature)
    assert vanilla.shape == (3, 6) and side_by_side.shape == (3, 8)
    assert vanilla.min() >= 0 and side_by_side.min() >= 0
    np.testing.assert_allclose(vanilla.sum(axis=1), 1)
    np.testing.assert_allclose(side_by_side[:, :4].sum(axis=1), 1)
    np.testing.assert_allclose(side_by_side[:, 4:].sum(axis=1), 1)


@pytest.mark.parametrize("method", [VanillaKdMethod(), DfaMethod(), CflMethod()])
def test_feature_baselines_distil_as_vanilla(method: BaselineMethod) -> None:
    found = baseline_targets(method, [ONE, TWO], SPACE.index, 3)
    np.testing.assert_allclose(found, [[3 / 8, 1 / 8, 4 / 8]])


def test_the_methods_temperature_counts() -> None:
    for kind in (VanillaKdMethod, UhcMethod):
        sharp, flat = (
            baseline_targets(kind(temperature=t), [ONE, TWO], SPACE.index, 3) for t in (0.1, 100.0)
        )
        assert sharp.max() > 0.99
        assert flat.max() < 0.52


def test_every_row_counts_the_same() -> None:
    scores_NM = np.array([[0.2, 0.9], [0.5, 0.5]])
    made = baseline_supervision(UhcMethod(), [np.tile(ONE, (2, 1)), np.tile(TWO, (2, 1))], SPACE, scores_NM)
    assert made.weights.tolist() == [1.0, 1.0]
    assert made.teacher.tolist() == [1, 0]
    assert made.targets.shape == (2, 4)
