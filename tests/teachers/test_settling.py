"""Early stop of rows whose score has settled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from muki_ray.config_method import SAMPLES_BETWEEN_LOOKS as GROUP
from muki_ray.teachers.settling import standard_error, unsettled
from tests.teachers.test_dropout import ROWS, engine, run, tokens


def test_standard_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.7, 0.3]])  # three samples of one row, mean .7 .3
    influence = -(p * np.log([0.7, 0.3])).sum(axis=1)
    expected = influence.std(ddof=1) / math.sqrt(3) / math.log(2)
    logits = torch.tensor(np.log(p)[:, None], dtype=torch.float32)
    assert standard_error(logits).tolist() == [pytest.approx(expected, rel=1e-5)]
    undrawn = torch.cat([logits, torch.full((2, 1, 2), torch.nan)])
    assert standard_error(undrawn).tolist() == [pytest.approx(expected, rel=1e-5)], (
        "what was not drawn is not there"
    )


def test_the_error_is_that_of_the_entropy() -> None:
    """Against many repetitions: the spread of the normalised entropy of the mean of K samples."""
    generator = torch.Generator().manual_seed(0)
    K, repeats = 64, 2000
    logits = torch.tensor([1.0, 0.0, -1.0]) + torch.randn(K, repeats, 3, generator=generator)
    mean = logits.softmax(-1).mean(0)
    entropy = torch.special.entr(mean).sum(-1) / math.log(3)
    assert standard_error(logits).mean().item() == pytest.approx(entropy.std().item(), rel=0.1)


def test_rows_that_agree_with_themselves_have_settled() -> None:
    same = torch.tensor([[2.0, 0.0]]).expand(4, 1, 2)
    wild = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]], [[4.0, 0.0]], [[0.0, 0.0]]])
    assert unsettled(torch.cat([same, wild], dim=1), 0.01).tolist() == [False, True]


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_rows_leave_one_by_one(kind: str) -> None:
    full = engine(kind, samples=16).run(tokens(ROWS), shard=0, batch=0)
    assert full.drawn.tolist() == [16] * len(ROWS)
    errors = standard_error(full.logits[1 : 1 + GROUP]).sort().values
    bound = float(errors[2:4].mean())  # between two rows': rounding decides nothing
    mc = engine(kind, samples=16, early_stop=bound)
    stopped = mc.run(tokens(ROWS), shard=0, batch=0)
    assert set(stopped.drawn.tolist()) <= {4, 8, 12, 16}
    assert len(set(stopped.drawn.tolist())) > 1, "some rows settle before others"
    for row, drawn in enumerate(stopped.drawn.tolist()):
        torch.testing.assert_close(
            stopped.logits[: drawn + 1, row], full.logits[: drawn + 1, row], atol=1e-5, rtol=1e-5
        )
        assert stopped.logits[drawn + 1 :, row].isnan().all()
        alone = mc.run(tokens([ROWS[row]]), shard=0, batch=0)
        assert alone.drawn.tolist() == [drawn], "a row's decision is its own"


def test_bounds_that_all_or_no_rows_meet() -> None:
    assert (
        engine("bert", samples=16, early_stop=1e-9).run(tokens(ROWS), shard=0, batch=0).drawn.tolist()
        == [16] * 5
    )
    assert (
        engine("bert", samples=16, early_stop=9.0).run(tokens(ROWS), shard=0, batch=0).drawn.tolist()
        == [GROUP] * 5
    )
    assert (
        engine("bert", samples=3, early_stop=9.0).run(tokens(ROWS), shard=0, batch=0).drawn.tolist()
        == [3] * 5
    )


def test_when_a_row_settles_does_not_depend_on_how_many_samples_run_together() -> None:
    bound = float(standard_error(run(engine("bert", samples=16), ROWS)[1 : 1 + GROUP]).median()) * 1.01
    drawn = [
        engine("bert", samples=16, early_stop=bound, token_budget=budget)
        .run(tokens(ROWS), shard=0, batch=0)
        .drawn
        for budget in (1, 150, None)
    ]
    assert len(set(drawn[0].tolist())) > 1
    assert drawn[0].tolist() == drawn[1].tolist() == drawn[2].tolist()


@pytest.mark.parametrize("kind", ["bert", "albert", "llama"])
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_samples_in_groups_are_the_same_samples(kind: str, budget: int) -> None:
    whole = run(engine(kind, samples=7), ROWS)
    torch.testing.assert_close(
        run(engine(kind, samples=7, token_budget=budget), ROWS), whole, atol=1e-5, rtol=1e-5
    )
