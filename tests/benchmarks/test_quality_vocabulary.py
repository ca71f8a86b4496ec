"""A cut vocabulary: the same tokens, the same answers, fewer rows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from quality_vocabulary import cut
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

PIECES = ["[PAD]", *(f"[unused{i}]" for i in range(5)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += ["play", "##ing", "##s", "jazz", "rock", "never", "said", "ball"]
TEXTS = ["Playing jazz", "plays rock", "an unknown play"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT with a head for masked words, and a WordPiece tokenizer that cuts at 16."""
    plain = Tokenizer(models.WordPiece({p: i for i, p in enumerate(PIECES)}, unk_token="[UNK]"))
    plain.normalizer = normalizers.BertNormalizer()
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, PIECES.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=16, **names).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(PIECES), **sizes)).save_pretrained(tmp_path)
    return tmp_path


def answers(folder: Path) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(
            **tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")
        ).last_hidden_state.numpy()


def test_the_model_answers_as_before_with_fewer_rows(folder: Path) -> None:
    before = answers(folder)
    cut(folder, TEXTS)
    np.testing.assert_array_equal(answers(folder), before)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["bert.embeddings.word_embeddings.weight"].shape == (10, 16)  # 5 special, 5 pieces
    assert not [name for name in tensors if name.startswith("cls.")]
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 10


def test_pieces_that_no_text_has_are_unknown_afterwards(folder: Path) -> None:
    cut(folder, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("never playing") == ["[UNK]", "play", "##ing"]
