"""Texts in, evidence out; the statistics against numpy on the engine's samples."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from muki_ray.config_method import DropoutConfig
from muki_ray.errors import TeacherError
from muki_ray.teachers.loading import LoadedClassifier, load_classifier
from muki_ray.teachers.scoring import Scorer, reduce_samples
from muki_ray.uncertainty import softmax
from tests import tiny

LABELS = ["world", "sport", "business"]
TEXTS = tiny.texts(23, seed=3)
K = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier(tmp_path_factory.mktemp("teacher"), LABELS)


def loaded(folder: Path, **changes: Any) -> LoadedClassifier:
    return load_classifier("t", str(folder), **changes)


def scorer(
    classifier: LoadedClassifier, samples: int = K, budget: int | None = 100, **dropout: Any
) -> Scorer:
    return Scorer(
        classifier, samples=samples, dropout=DropoutConfig(**dropout), seed_key="fp", token_budget=budget
    )


def plain(classifier: LoadedClassifier, text: str, pair: str | None = None) -> np.ndarray:
    """Logits of one row, as anyone would compute them."""
    inputs = classifier.tokenizer(
        text, pair, return_tensors="pt", truncation=True, max_length=classifier.max_length
    )
    with torch.no_grad():
        return np.asarray(classifier.model(**inputs).logits[0].float().numpy())


def test_without_samples(folder: Path) -> None:
    classifier = loaded(folder)
    evidence = scorer(classifier, samples=0).score(TEXTS)
    assert evidence.logits.dtype == np.float32
    np.testing.assert_allclose(evidence.logits, [plain(classifier, text) for text in TEXTS], atol=1e-5)
    assert (evidence.mc_probs, evidence.mc_energy, evidence.mc_expected_entropy, evidence.mc_variance) == (
        None,
    ) * 4


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
def test_statistics_of_the_samples(folder: Path, masks: str) -> None:
    """A batch of one row, so that the engine can be asked for the same samples."""
    classifier = loaded(folder)
    for text in TEXTS[:3]:
        evidence = scorer(classifier, masks=masks).score([text], shard=6)
        inputs = dict(classifier.tokenizer([text], return_tensors="pt"))
        z = scorer(classifier, masks=masks).engine.logits(inputs, shard=6, batch=0)[:, 0].double().numpy()
        assert z.shape == (K + 1, 3)
        p = softmax(z[1:])
        np.testing.assert_allclose(evidence.logits[0], z[0], atol=1e-6)
        assert evidence.mc_probs is not None
        np.testing.assert_allclose(evidence.mc_probs[0], p.sum(axis=0) / K, atol=1e-6)
        np.testing.assert_allclose(evidence.mc_energy, np.log(np.exp(z[1:]).sum(axis=1)).sum() / K, atol=1e-5)
        np.testing.assert_allclose(evidence.mc_expected_entropy, -(p * np.log(p)).sum() / K, atol=1e-6)
        squares = (p**2).sum(axis=0) / K - (p.sum(axis=0) / K) ** 2
        np.testing.assert_allclose(evidence.mc_variance, squares.sum(), atol=1e-6)


def test_statistics_by_hand() -> None:
    half, quarter = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    logits = torch.tensor(np.array([[[9.0, 9.0]], [half + 2.0], [quarter]]), dtype=torch.float32)
    got = {name: value.tolist() for name, value in reduce_samples(logits, torch.tensor([2])).items()}
    assert got["logits"] == [[9.0, 9.0]], "the deterministic pass is no sample"
    assert got["mc_probs"] == [pytest.approx([0.375, 0.625])]
    assert got["mc_energy"] == [pytest.approx(1.0)]  # logsumexp is 2 and 0
    entropies = np.log(2), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert got["mc_expected_entropy"] == [pytest.approx(sum(entropies) / 2)]
    assert got["mc_variance"] == [pytest.approx(2 * 0.125**2)]


def test_certain_samples_have_entropy_0() -> None:
    got = reduce_samples(torch.tensor([[[0.0, 0.0]], [[0.0, 1000.0]]]), torch.tensor([1]))
    assert got["mc_expected_entropy"].tolist() == [0.0]
    assert got["mc_probs"].tolist() == [[0.0, 1.0]]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("samples", [0, K])
def test_rows_come_back_in_their_order_whatever_the_batches(tmp_path: Path, kind: str, samples: int) -> None:
    classifier = loaded(tiny.classifier(tmp_path, LABELS, kind))
    one = scorer(classifier, samples, budget=1).score(TEXTS)
    np.testing.assert_allclose(one.logits, [plain(classifier, text) for text in TEXTS], atol=1e-5)
    assert len(np.unique(one.logits.round(3), axis=0)) > 15, "rows differ, so that their order shows"
    for budget in (60, 10_000, None):
        other = scorer(classifier, samples, budget=budget).score(TEXTS)
        for name in ("logits", "mc_probs", "mc_energy", "mc_expected_entropy", "mc_variance"):
            if samples or name == "logits":
                np.testing.assert_allclose(getattr(other, name), getattr(one, name), atol=2e-5, err_msg=name)


def test_the_seed_and_the_key_change_the_samples_only(folder: Path) -> None:
    classifier = loaded(folder)
    one, other = scorer(classifier).score(TEXTS), scorer(classifier, seed=1).score(TEXTS)
    np.testing.assert_array_equal(one.logits, other.logits)
    assert one.mc_probs is not None and other.mc_probs is not None
    assert np.abs(one.mc_probs - other.mc_probs).max() > 1e-3
    key = Scorer(classifier, samples=K, dropout=DropoutConfig(), seed_key="other", token_budget=100).score(
        TEXTS
    )
    assert key.mc_probs is not None
    assert np.abs(one.mc_probs - key.mc_probs).max() > 1e-3


def test_classical_samples_are_the_same_for_a_retry_of_the_shard(folder: Path) -> None:
    classifier = loaded(folder)
    one, retry, other = (scorer(classifier, masks="per_element").score(TEXTS, shard=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.mc_energy, retry.mc_energy)
    assert one.mc_energy is not None and other.mc_energy is not None
    assert (one.mc_energy != other.mc_energy).all()


def test_text_pairs(folder: Path) -> None:
    classifier = loaded(folder)
    pairs = TEXTS[::-1]
    evidence = scorer(classifier).score(TEXTS, pairs)
    expected = [plain(classifier, a, b) for a, b in zip(TEXTS, pairs, strict=True)]
    np.testing.assert_allclose(evidence.logits, expected, atol=1e-5)
    assert np.abs(evidence.logits - scorer(classifier).score(TEXTS).logits).max() > 1e-2


def test_texts_are_cut_at_max_length(folder: Path) -> None:
    classifier = loaded(folder, max_length=6)
    long = "good film wins the cup match again and again"
    evidence = scorer(classifier).score([long, "good film wins the"])
    np.testing.assert_allclose(evidence.logits[0], evidence.logits[1], atol=1e-6)  # 4 words and 2 specials
    whole = scorer(loaded(folder)).score([long])
    assert np.abs(whole.logits[0] - evidence.logits[0]).max() > 1e-3


@pytest.mark.parametrize("samples", [0, 2])
def test_max_length_may_leave_all_rows_equally_long(folder: Path, samples: int) -> None:
    """The probe then has no padding of its own, but later batches have."""
    classifier = loaded(folder, max_length=5)
    mixed = ["good", "good film wins the cup", ""]
    evidence = scorer(classifier, samples).score(mixed)
    np.testing.assert_allclose(evidence.logits, [plain(classifier, text) for text in mixed], atol=1e-5)


@pytest.mark.parametrize("budget", [1, 40, None])
def test_progress_counts_every_row_once(folder: Path, budget: int | None) -> None:
    told: list[int] = []
    scorer(loaded(folder), budget=budget).score(TEXTS, progress=told.append)
    assert sum(told) == len(TEXTS)
    assert all(rows > 0 for rows in told)


@pytest.mark.parametrize("samples", [0, K])
def test_no_rows(folder: Path, samples: int) -> None:
    evidence = scorer(loaded(folder), samples).score([])
    assert evidence.logits.shape == (0, 3)
    assert (evidence.mc_probs is None) == (samples == 0)


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Like a decoder's: nothing is put around a text."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


@pytest.mark.parametrize("samples", [0, K])
def test_a_row_without_tokens_gets_nan(tmp_path: Path, samples: int) -> None:
    tiny.classifier(tmp_path, LABELS, "gpt2")
    bare_tokenizer().save_pretrained(tmp_path)
    classifier = loaded(tmp_path)
    told: list[int] = []
    evidence = scorer(classifier, samples).score(["good film", " ", "the cup"], progress=told.append)
    assert evidence.finite().tolist() == [True, False, True]
    np.testing.assert_allclose(
        evidence.logits[[0, 2]], [plain(classifier, t) for t in ("good film", "the cup")], atol=1e-5
    )
    assert sum(told) == 3


def test_a_tokenizer_that_forgets_the_attention_mask(tmp_path: Path) -> None:
    """Padding would be read as text."""
    tiny.classifier(tmp_path, LABELS)
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids"]
    tokenizer.save_pretrained(tmp_path)
    classifier = loaded(tmp_path)
    assert classifier.tokenizer.model_input_names == ["input_ids"]
    evidence = scorer(classifier, budget=10_000).score(TEXTS)
    np.testing.assert_allclose(evidence.logits, [plain(classifier, text) for text in TEXTS], atol=1e-5)


def test_inputs_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    tiny.classifier(tmp_path, LABELS, "distilbert")
    tokenizer = tiny.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path)
    classifier = loaded(tmp_path)
    assert classifier.input_names == {"input_ids", "attention_mask"}
    assert scorer(classifier).score(TEXTS).finite().all()


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2"])
def test_bfloat16_is_near_float32(tmp_path: Path, kind: str) -> None:
    tiny.classifier(tmp_path, LABELS, kind)
    exact = scorer(loaded(tmp_path)).score(TEXTS)
    low = scorer(loaded(tmp_path, dtype="bfloat16")).score(TEXTS)
    assert low.logits.dtype == np.float32
    assert exact.mc_probs is not None and low.mc_probs is not None
    assert np.abs(exact.mc_probs - low.mc_probs).mean() < 0.03
    assert np.abs(exact.logits - low.logits).mean() < 0.05 * np.abs(exact.logits).mean()


# -- a GPU's memory ----------------------------------------------------------------------------------------


def confine(scorer: Scorer, most: int) -> list[int]:
    """Give a scorer a memory that holds so many tokens of one forward; returns where each forward's are noted."""
    seen: list[int] = []

    def take(tokens: int) -> None:
        if tokens > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} tokens")
        seen.append(tokens)

    if scorer.engine.mode == "per_element":
        forward = scorer.engine.classical._forward

        def confined(inputs: Any, training: bool) -> torch.Tensor:
            take(inputs["input_ids"].numel())
            return forward(inputs, training)

        scorer.engine.classical._forward = confined  # type: ignore[method-assign]
        return seen
    runner = scorer.engine.runner

    class Confined:
        widened = runner.widened

        def start(self, inputs: Any) -> Any:
            take(inputs["input_ids"].numel())
            return runner.start(inputs)

        def logits(self, shared: Any, first: int, last: int, rows: torch.Tensor | None) -> torch.Tensor:
            take((last - first) * (shared.rows if rows is None else len(rows)) * shared.tokens)
            return runner.logits(shared, first, last, rows)

    scorer.engine.runner = Confined()
    return seen


@pytest.mark.parametrize(("most", "early_stop"), [(14, None), (40, 0.02), (100, None)])
def test_a_full_memory_halves_the_batches_and_changes_nothing(
    folder: Path, most: int, early_stop: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "muki_ray")
    roomy = scorer(loaded(folder), 8, budget=4000, early_stop=early_stop)
    small = scorer(loaded(folder), 8, budget=4000, early_stop=early_stop)
    seen = confine(small, most)
    told: list[int] = []
    for texts in (TEXTS, tiny.texts(17, seed=5)):
        got, expected = small.score(texts, progress=told.append), roomy.score(texts)
        for name in ("logits", "mc_probs", "mc_energy", "mc_expected_entropy", "mc_variance", "mc_samples"):
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=2e-5, err_msg=name)
    assert sum(told) == len(TEXTS) + 17
    assert max(seen) > most / 4, "no smaller than it has to be"
    assert len(caplog.records) == 1
    assert "teacher 't': the GPU's memory does not hold" in caplog.text


def test_once_lowered_the_budget_stays(folder: Path) -> None:
    small = scorer(loaded(folder), budget=4000)
    confine(small, 60)
    small.score(TEXTS)
    assert small.token_budget == small.engine.token_budget <= 60
    before = small.token_budget
    small.score(TEXTS)
    assert small.token_budget == before


def test_a_full_memory_under_classical_masks_draws_the_same_again(folder: Path) -> None:
    def confined() -> Any:
        small = scorer(loaded(folder), masks="per_element", budget=4000)
        confine(small, 80)
        return small.score(TEXTS, shard=3)

    one, retry = confined(), confined()
    np.testing.assert_array_equal(one.mc_probs, retry.mc_probs)
    np.testing.assert_allclose(one.logits, scorer(loaded(folder)).score(TEXTS).logits, atol=2e-5)


@pytest.mark.parametrize("masks", ["per_sample", "per_element"])
def test_a_text_that_memory_does_not_hold_alone(folder: Path, masks: str) -> None:
    small = scorer(loaded(folder), masks=masks, budget=4000)
    confine(small, 6)
    with pytest.raises(
        TeacherError, match=r"^teacher 't': the GPU's memory does not hold one text of 1\d tokens; lower"
    ):
        small.score(TEXTS)
