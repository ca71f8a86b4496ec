"""The loss of UHC: by hand, blind to the mass of disjoint blocks, zero where the student agrees with all."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from muki_ray.baselines.uhc import uhc_rows
from muki_ray.student.losses import kl_rows

DISJOINT = [torch.tensor([2, 0]), torch.tensor([1, 3, 4])]
OVERLAPPING = [torch.tensor([0, 1]), torch.tensor([1, 2])]


def drawn(seed: int, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over five labels, and the targets of the two disjoint blocks side by side."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 5, generator=generator)
    parts = [torch.randn(rows, n, generator=generator).softmax(-1) for n in (2, 3)]
    return logits, torch.cat(parts, dim=1)


def test_by_hand() -> None:
    # the student's union is 1/8, 2/8, 5/8; the blocks see 1/3, 2/3 and 2/7, 5/7
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    targets = torch.tensor([[0.5, 0.5, 0.0, 1.0]])
    expected = 0.5 * math.log(0.5 / (1 / 3)) + 0.5 * math.log(0.5 / (2 / 3)) + math.log(7 / 5)
    torch.testing.assert_close(uhc_rows(logits, targets, OVERLAPPING, 1.0), torch.tensor([expected]))


def test_by_hand_at_temperature_2() -> None:
    # of 1, 4, 4 the roots are 1, 2, 2; times T squared
    logits = torch.tensor([[1.0, 4.0, 4.0]]).log()
    targets = torch.tensor([[1.0, 0.0, 0.5, 0.5]])
    torch.testing.assert_close(uhc_rows(logits, targets, OVERLAPPING, 2.0), torch.tensor([4 * math.log(3)]))


@given(st.integers(0, 10_000), st.floats(-20, 20), st.floats(0.5, 4))
def test_blind_to_the_mass_of_disjoint_blocks(seed: int, shift: float, temperature: float) -> None:
    logits, targets = drawn(seed)
    moved = logits.clone()
    moved[:, DISJOINT[0]] += shift
    torch.testing.assert_close(
        uhc_rows(moved, targets, DISJOINT, temperature),
        uhc_rows(logits, targets, DISJOINT, temperature),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_label_in_common_ties_the_blocks() -> None:
    logits, targets = torch.zeros(1, 3), torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    moved = logits + torch.tensor([0.0, 3.0, 0.0])
    assert float(uhc_rows(logits, targets, OVERLAPPING, 1.0)) == 0.0
    assert float(uhc_rows(moved, targets, OVERLAPPING, 1.0)) > 1.0


@given(st.integers(0, 10_000))
def test_the_renormalised_student_is_what_is_compared(seed: int) -> None:
    """As the formula is written: the softmax over the union, divided by the block's sum."""
    logits, targets = drawn(seed)
    union = logits.softmax(-1)
    expected = torch.zeros(len(logits))
    for places, part in zip(DISJOINT, targets.split([2, 3], dim=1), strict=True):
        q = union[:, places] / union[:, places].sum(-1, keepdim=True)
        expected += (part * (part / q).log()).sum(-1)
    torch.testing.assert_close(uhc_rows(logits, targets, DISJOINT, 1.0), expected, atol=1e-5, rtol=1e-4)


def test_one_block_over_everything_is_plain_kl() -> None:
    logits, _ = drawn(0)
    targets = torch.randn(4, 5).softmax(-1)
    found = uhc_rows(logits, targets, [torch.arange(5)], 1.5)
    torch.testing.assert_close(found, kl_rows(logits, targets, 1.5))


def test_descending_leads_to_agreement() -> None:
    logits, targets = drawn(3)
    logits = logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        uhc_rows(logits, targets, DISJOINT, 1.0).sum().backward()
        optimizer.step()
    found = torch.cat([logits.detach()[:, places].softmax(-1) for places in DISJOINT], dim=1)
    torch.testing.assert_close(found, targets, atol=1e-3, rtol=0)
