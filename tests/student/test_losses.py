"""KL from target to student: numbers by hand, zeros, weights, and the library's own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.student.losses import kl_rows, weighted_kl


def test_by_hand() -> None:
    # q = softmax(log 3, 0) = (3/4, 1/4)
    logits = torch.tensor([[math.log(3.0), 0.0]] * 3)
    targets = torch.tensor([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]])
    # 1/2 log(1/2 : 3/4) + 1/2 log(1/2 : 1/4) = 1/2 log(4/3); equal: 0; 1 log(1 : 3/4) = log(4/3)
    expected = torch.tensor([0.5 * math.log(4 / 3), 0.0, math.log(4 / 3)])
    torch.testing.assert_close(kl_rows(logits, targets), expected, atol=1e-6, rtol=0)


def test_weights_by_hand() -> None:
    logits = torch.zeros(2, 2)
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # each row costs log 2
    total = weighted_kl(logits, targets, torch.tensor([2.0, 0.25]))
    assert float(total) == pytest.approx(2.25 * math.log(2), rel=1e-6)
    assert float(weighted_kl(logits, targets, torch.zeros(2))) == 0.0


def test_zero_targets_give_finite_loss_and_gradient() -> None:
    logits = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = weighted_kl(logits, torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    # the wrong way round: finite too, 400 nats
    assert float(kl_rows(logits.detach(), torch.tensor([[0.0, 1.0, 0.0]]))) == pytest.approx(400.0)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.softmax(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), -1)
    rows = kl_rows(logits, targets)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, kl_rows(logits.float(), targets))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    rows, labels, seed = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet(np.full(labels, draw(st.sampled_from([0.02, 0.5, 5.0]))), size=rows)
    logits = rng.normal(scale=draw(st.sampled_from([0.1, 3.0, 30.0])), size=(rows, labels))
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)


@given(_cases())
def test_never_negative_and_equal_to_the_library(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, targets = case
    rows = kl_rows(logits, targets)
    assert (rows >= -1e-5).all()
    library = torch.nn.KLDivLoss(reduction="none")(logits.log_softmax(-1), targets).sum(-1)
    torch.testing.assert_close(rows, library, atol=1e-5, rtol=1e-4)


@given(_cases())
def test_zero_for_equal_distributions(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, _ = case
    torch.testing.assert_close(
        kl_rows(logits, logits.softmax(-1)), torch.zeros(len(logits)), atol=1e-5, rtol=0
    )
