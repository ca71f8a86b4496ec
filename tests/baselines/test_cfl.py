"""CFL: the discrepancy against loops and as a distance, and whom the gradient reaches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.baselines.cfl import Cfl, mmd
from muki_ray.baselines.dfa import squared_error


def sample(rows: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)) + shift


def by_loops(x: list[list[float]], y: list[list[float]]) -> float:
    """The formula, pair by pair."""
    rows = len(x)

    def square(a: list[float], b: list[float]) -> float:
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))

    spread = sum(
        square(x[i], x[j]) + square(y[i], y[j]) + 2 * square(x[i], y[j])
        for i in range(rows) for j in range(rows)
    ) / 4 / rows**2  # fmt: skip

    def kernel(a: list[float], b: list[float]) -> float:
        return sum(math.exp(-square(a, b) / (2 * c * spread)) for c in (0.25, 0.5, 1, 2, 4))

    return sum(
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - 2 * kernel(x[i], y[j])
        for i in range(rows) for j in range(rows)
    ) / rows**2  # fmt: skip


def test_by_hand_with_one_row_each() -> None:
    # the distance squared is 4, so s^2 = 2 * 4 / 4 = 2: 2 * (5 - sum_c exp(-1 / c))
    found = mmd(torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    expected = 2 * (5 - sum(math.exp(-1 / c) for c in (0.25, 0.5, 1, 2, 4)))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    x, y = sample(5, seed), sample(5, seed + 100, 0.5)
    assert float(mmd(x, y)) == pytest.approx(by_loops(x.tolist(), y.tolist()), rel=1e-4)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_equal_samples_in_any_order_are_at_zero(seed: int, rows: int) -> None:
    x = sample(rows, seed)
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-6)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert float(mmd(x, x[order])) == pytest.approx(0, abs=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(-3, 3))
def test_symmetric_and_never_negative(seed: int, rows: int, shift: float) -> None:
    x, y = sample(rows, seed), sample(rows, seed + 1, shift)
    assert float(mmd(x, y)) == pytest.approx(float(mmd(y, x)), abs=1e-5)
    assert float(mmd(x, y)) >= 0


def test_farther_apart_is_more() -> None:
    x = sample(16, 0)
    values = [float(mmd(x, x + shift)) for shift in (0.5, 1.0, 2.0)]
    assert 0.01 < values[0] < values[1] < values[2]


def test_a_batch_of_one_point_is_no_division_by_zero() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    found = mmd(x, torch.ones(3, 2))
    found.backward()
    assert float(found.detach()) == 0
    assert x.grad is not None and torch.isfinite(x.grad).all()


def test_the_gradient_moves_one_sample_to_the_other() -> None:
    x, y = sample(8, 0).requires_grad_(), sample(8, 1, 2.0)
    before = float(mmd(x, y).detach())
    optimizer = torch.optim.SGD([x], 1.0)
    for _ in range(50):
        optimizer.zero_grad()
        mmd(x, y).backward()
        optimizer.step()
    assert float(mmd(x, y).detach()) < before / 3


def test_distances_are_exact_under_autocast() -> None:
    x = sample(4, 0) + 100.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mmd(x, x + 0.5)
    torch.testing.assert_close(inside, mmd(x, x + 0.5))


# -- the modules -----------------------------------------------------------------------------------------


def heads(width: int | None = None) -> Cfl:
    torch.manual_seed(0)
    return Cfl(16, [8, 6], width)


def features(rows: int) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(rows, 16, generator=generator, requires_grad=True) for _ in range(2)]
    teachers = [
        [torch.randn(rows, n, generator=generator) for n in (1, 8)],
        [torch.randn(rows, 6, generator=generator)],
    ]
    return student, teachers


def test_the_common_space_is_a_quarter_unless_said() -> None:
    assert heads().extract[0].in_features == 4
    assert heads(7).extract[0].in_features == 7
    assert Cfl(2, [2]).extract[0].in_features == 1


def test_the_sum_of_its_parts() -> None:
    made = heads()
    student, teachers = features(5)
    expected = torch.zeros(())
    own = made.extract(torch.relu(made.align_student[0](student[-1])))
    for m, width in enumerate((8, 6)):
        wanted = teachers[m][-1]
        common = made.extract(torch.relu(made.align_teachers[m][0](wanted)))
        first, _, second = made.decode_teachers[m]
        assert first.out_features == second.out_features == width
        restored = second(torch.relu(first(common)))
        unit = [v / v.norm(dim=1, keepdim=True) for v in (own, common)]
        expected = expected + 5 * mmd(*unit) + squared_error(restored, wanted).sum()
    torch.testing.assert_close(made(student, teachers, torch.ones(5)), expected)


def test_the_gradient_reaches_the_last_layer_and_every_projection() -> None:
    made = heads(8)
    student, teachers = features(8)
    made(student, teachers, torch.ones(8)).backward()
    assert student[0].grad is None, "only the last layer is compared"
    assert student[1].grad is not None and float(student[1].grad.abs().max()) > 0
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
