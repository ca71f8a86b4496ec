"""Tiny real models and tokenizers, built on the spot: no network, milliseconds to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = ("shares profit bank market chip phone software code film song actor band vote law party minister goal match cup "
         "team the a of in on rises falls wins new old good bad big small").split()  # fmt: skip
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "xlm-roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "mpnet": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "electra": {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 32},
    "albert": {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 32, "hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.1},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "deberta-v2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                   "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 32},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 32},
    "modernbert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                   "embedding_dropout": 0.1, "mlp_dropout": 0.1, "classifier_dropout": 0.1},
}  # fmt: skip


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BERT's special tokens; unknown words become [UNK]."""
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def config(kind: str, labels: Sequence[str], **changes: Any) -> Any:
    """Configuration of a tiny model of that architecture."""
    named = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {n: i for i, n in enumerate(labels)},
    }
    common = {"vocab_size": len(SPECIALS) + len(WORDS), "max_position_embeddings": 70, "pad_token_id": 0}
    return AutoConfig.for_model(kind, **{**common, **SIZES[kind], **named, **changes})


def classifier(
    folder: Path, labels: Sequence[str], kind: str = "bert", seed: int = 0, **changes: Any
) -> Path:
    """A tiny classifier with random weights, saved with its tokenizer. Its head is scaled so that answers differ."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config(kind, labels, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def base(folder: Path, kind: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """A tiny base model without a head."""
    torch.manual_seed(seed)
    AutoModel.from_config(config(kind, ["a", "b"], **changes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(rows: int, seed: int = 0) -> list[str]:
    """Texts of one to twelve known words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (rows,), generator=generator).tolist()
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist())
        for n in lengths
    ]
