"""Operations of the sampled programs, against plain Torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from muki_ray.teachers import kernels, packing

B, G, H = 3, 4, 6


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("samples", [1, G])
@pytest.mark.parametrize("fanned", [True, False])
@pytest.mark.parametrize("other_fanned", [True, False])
@pytest.mark.parametrize("inner", [(), (5,)])
def test_masks(samples: int, fanned: bool, other_fanned: bool, inner: tuple[int, ...]) -> None:
    rows, others = (samples if fanned else 1) * B, (samples if other_fanned else 1) * B
    value, other, mask = drawn(rows, *inner, H), drawn(others, *inner, H, seed=1), drawn(samples, H, seed=2)

    def of(tensor: torch.Tensor, k: int, full: bool) -> torch.Tensor:
        return tensor[k * B : (k + 1) * B] if full else tensor

    masked = torch.cat([of(value, k, fanned) * mask[k] for k in range(samples)])
    torch.testing.assert_close(kernels.masked(value, mask, fanned), masked)
    if samples == 1 or fanned or not other_fanned or samples == G:
        expected = masked + torch.cat([of(other, k, other_fanned) for k in range(samples)])
        torch.testing.assert_close(kernels.masked_sum(value, mask, other, fanned, other_fanned), expected)


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("kind", ["none", "bool", "open", "float"])
@pytest.mark.parametrize("limit", [10**6, 0])
def test_attention(queries: int, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_MOST_SCORES", limit)  # 0: the fused kernel
    q, k, v = drawn(B, 2, queries, 4), drawn(B, 2, 5, 4, seed=1), drawn(B, 2, 5, 8, seed=2)
    hidden = drawn(B, 1, 1, 5, seed=3).expand(B, 1, queries, 5)
    masks = {"none": None, "bool": hidden > -1.0, "open": hidden > -99.0, "float": hidden}
    mask = masks[kind]
    added = None if mask is None else kernels.additive(mask, q)
    assert (added is None) == (kind in ("none", "open"))
    got = kernels.attention(q, k, v, added, 0.3)
    torch.testing.assert_close(got, functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3))


def test_a_token_that_sees_nothing_is_no_nan() -> None:
    q = drawn(1, 1, 2, 4)
    added = kernels.additive(torch.zeros(1, 1, 2, 2, dtype=torch.bool), q)
    assert kernels.attention(q, q, q, added, 0.5).isfinite().all()


def test_each_rows_own_token() -> None:
    value, position = drawn(B, 5, H), torch.tensor([4, 0, 2])
    expected = torch.stack([value[b, position[b]] for b in range(B)])[:, None]
    assert torch.equal(kernels.token_of_each_row(value, 1, position), expected)
    shared = drawn(1, 5, H)
    assert torch.equal(kernels.token_of_each_row(shared, 1, position), shared[0, position][:, None])
    heads = drawn(B * 2, 5, H)  # rows first, then heads
    got = kernels.token_of_each_row(heads, 1, position)
    assert torch.equal(got[:, 0], heads[torch.arange(6), position.repeat_interleave(2)])


@pytest.mark.skipif(not packing.available(), reason="this build of Torch has no packed kernels")
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_packed_projections(activation: str) -> None:
    x, w, b = (drawn(*s, seed=i).bfloat16() for i, s in enumerate([(2, 7, 8), (16, 8), (16,)]))
    assert packing.fits(w)
    expected = functional.linear(x.float(), w.float(), b.float())
    expected = functional.gelu(expected) if activation == "gelu" else expected
    got = packing.linear(x, packing.pack(w), b, activation)
    torch.testing.assert_close(got.float(), expected, atol=2e-2, rtol=2e-2)


def test_float32_is_not_packed() -> None:
    assert not packing.fits(drawn(4, 4))
