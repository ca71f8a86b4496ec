"""The faster operations are the same functions of their inputs as Torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muki_ray.teachers import dropout_kernels
from muki_ray.teachers.dropout_kernels import attention, dropout

ROWS, HEADS, TOKENS, SIZE = 3, 2, 5, 4


def heads(queries: int = TOKENS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(ROWS, HEADS, t, SIZE) for t in (queries, TOKENS, TOKENS)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def answer(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and a gradient for every input."""
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), inputs)]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# -- dropout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_share_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 501, dtype=dtype)
    out = dropout(x, rate, True)
    assert out.dtype == dtype
    assert float((out == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    kept = out[out != 0].float()
    assert kept.unique().numel() == 1
    assert float(kept[0]) == pytest.approx(1 / (1 - rate), rel=5e-3)
    # every place of the four that one random word decides, and every column
    by_place = (out == 0).float().flatten()[: 4 * 50_000].view(-1, 4).mean(0)
    assert torch.allclose(by_place, torch.full((4,), rate), atol=0.015)
    assert (out == 0).float().mean(0).std() < 2.5 * (rate * (1 - rate) / 400) ** 0.5


def test_dropout_of_neighbours_is_independent() -> None:
    torch.manual_seed(1)
    lost = dropout(torch.ones(400_000), 0.5, True) == 0
    for distance in (1, 2, 3, 4, 8):
        both = (lost[:-distance] & lost[distance:]).float().mean()
        assert float(both) == pytest.approx(0.25, abs=0.005)


def test_the_gradient_passes_where_the_value_did() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 9, requires_grad=True)
    out = dropout(x, 0.3, True)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, x * gradient)
    assert (gradient == 0).any()
    assert (gradient > 1).any()


def test_dropout_repeats_with_the_seed_and_is_off_outside_training() -> None:
    x = torch.randn(64, 64)
    torch.manual_seed(3)
    first, second = dropout(x, 0.2, True), dropout(x, 0.2, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.2, True), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.2, False) is x
    assert dropout(x, 0.0, True) is x
    assert not dropout(x, 1.0, True).any()
    assert not torch.equal(dropout(x, 0.9999, True), x)


# -- attention -------------------------------------------------------------------------------------------


def masks() -> dict[str, torch.Tensor | None]:
    padding = torch.ones(ROWS, 1, 1, TOKENS, dtype=torch.bool)
    padding[1, ..., 3:] = False
    return {
        "none": None,
        "padding": padding,
        "padding, expanded": padding.expand(ROWS, 1, TOKENS, TOKENS),
        "numbers": torch.linspace(-2, 2, TOKENS * TOKENS).view(1, 1, TOKENS, TOKENS),
        "causal": torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None],
    }


@pytest.mark.parametrize("mask", list(masks()))
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_is_torchs(mask: str, scale: float | None) -> None:
    inputs, given = heads(), masks()[mask]
    mine = attention(*inputs, given, 0.5, training=False, scale=scale)
    theirs = nn.functional.scaled_dot_product_attention(*inputs, given, scale=scale)
    same(answer(mine, inputs), answer(theirs, inputs))


def test_attention_of_one_query() -> None:
    inputs = heads(queries=1)
    mask = masks()["padding, expanded"]
    assert mask is not None
    mine = attention(*inputs, mask.narrow(2, 0, 1), training=True)
    theirs = nn.functional.scaled_dot_product_attention(*inputs, mask[:, :, :1])
    same(answer(mine, inputs), answer(theirs, inputs))


def test_attention_with_dropout_is_its_formula_under_the_same_mask() -> None:
    inputs = heads()
    q, k, v = inputs
    torch.manual_seed(5)
    mine = attention(*inputs, masks()["padding"], 0.4, training=True)
    torch.manual_seed(5)
    kept, scale = dropout_kernels._kept(torch.Size((ROWS * HEADS, TOKENS, TOKENS)), 0.4, torch.float32)
    bias = torch.where(masks()["padding"], 0.0, -torch.inf)  # type: ignore[arg-type]
    probs = (q @ k.transpose(2, 3) * SIZE**-0.5 + bias).softmax(-1)
    theirs = (probs * kept.view_as(probs) * scale) @ v
    assert (kept == 0).any()
    same(answer(mine, inputs), answer(theirs, inputs))


def test_what_is_not_ours_goes_to_torch() -> None:
    inputs = heads()
    mine = attention(*inputs, is_causal=True, training=True)
    same([mine], [nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)])


def test_attention_under_autocast_computes_in_the_lower_type() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(*heads(), training=True)
    assert out.dtype == torch.bfloat16
    exact = nn.functional.scaled_dot_product_attention(*heads())
    torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)
