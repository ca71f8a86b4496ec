"""What a base model makes of texts: the mean of its last hidden states, in the texts' order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel

from muki_ray import embedding
from muki_ray.config import StudentConfig
from muki_ray.embedding import embed
from muki_ray.errors import ConfigError, StudentError
from muki_ray.student.model import StudentSpec, inspect_student
from tests import tiny


def spec(folder: Path, kind: str = "bert") -> StudentSpec:
    return inspect_student(StudentConfig(model=str(tiny.base(folder, kind))), 16)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_it_is_the_mean_over_the_tokens_whatever_the_batch(tmp_path: Path, kind: str) -> None:
    texts = [*tiny.texts(40), "team " * 60]
    found = embed(spec(tmp_path, kind), texts, 1, False)
    assert found is not None and found.dtype == np.float32
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), tiny.tokenizer()
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            expected = model(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-5)


def test_progress_counts_every_row_and_threads_are_given_back(tmp_path: Path) -> None:
    done: list[int] = []
    before = torch.get_num_threads()
    embed(spec(tmp_path), tiny.texts(33), before + 1, False, done.append)
    assert done == sorted(done) and done[-1] == 33
    assert torch.get_num_threads() == before


def test_a_text_without_a_vector_gets_the_mean_of_the_others() -> None:
    rows = np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 4.0]], np.float32)
    np.testing.assert_allclose(embedding._filled(rows), [[1, 2], [2, 3], [3, 4]])
    assert embedding._filled(np.full((2, 2), np.inf, np.float32)) is None


def test_a_model_without_a_vector_per_token_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ConfigError("no hidden states")

    monkeypatch.setattr(embedding, "pooled_layers", refuses)
    assert embed(spec(tmp_path), ["a"], 1, False) is None


def test_another_base_than_was_inspected_is_refused(tmp_path: Path) -> None:
    seen = spec(tmp_path)
    tiny.base(tmp_path, seed=1)
    with pytest.raises(StudentError, match="differs from the one the driver saw"):
        embed(seen, ["a"], 1, False)


def test_a_model_that_takes_no_mask_counts_every_token_but_padding() -> None:
    class Maskless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, output_hidden_states: bool) -> SimpleNamespace:
            states = input_ids.float().unsqueeze(-1)
            return SimpleNamespace(hidden_states=(states, 2 * states))

    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    tokenizer.pad_token = tokenizer.unk_token  # whose number is not 0
    texts = ["team", "team team team team"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert len(ids[0]) < len(ids[1]) and tokenizer.pad_token_id != 0
    found = embedding._Reader(Maskless(), tokenizer, 16).read(texts, 1000, lambda done: None)
    np.testing.assert_allclose(found, [[2 * np.mean(row)] for row in ids], rtol=1e-6)


def test_a_memory_that_holds_few_rows_gets_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, seen = tiny.texts(40), spec(tmp_path)
    expected = embed(seen, texts, 1, False)
    assert expected is not None
    means, asked = embedding._Reader._means, []

    def small(reader: embedding._Reader, rows: list[dict[str, list[int]]]) -> torch.Tensor:
        asked.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return means(reader, rows)

    monkeypatch.setattr(embedding._Reader, "_means", small)
    done: list[int] = []
    found = embed(seen, texts, 1, False, done.append)
    assert found is not None and max(asked) > 3 and done[-1] == 40
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_memory_that_holds_not_one_row_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(embedding._Reader, "_means", never)
    with pytest.raises(StudentError, match=r"does not hold one text of 16 tokens in student\.model"):
        embed(spec(tmp_path), ["team " * 60, "team"], 1, False)
