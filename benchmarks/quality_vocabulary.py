"""A BERT folder whose vocabulary is cut to given texts: they are cut into the same tokens, what is left out is never read.

Of BERT-tiny's 4.4 million weights 3.9 are rows for words; an optimizer moves every row at every step, so that training
on 3,000 short texts takes several times longer with words that do not occur in them. Knows files and tokenizers; no models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

_WORDS = "embeddings.word_embeddings.weight"


# what a tokenizer says of a text besides its ids takes hundreds of bytes per token
_AT_ONCE = 64


def _cut_up(tokenizer: Tokenizer, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Token ids of each text."""
    return [
        np.array(one.ids, dtype=np.int32)
        for first in range(0, len(texts), _AT_ONCE)
        for one in tokenizer.encode_batch(list(texts[first : first + _AT_ONCE]), add_special_tokens=False)
    ]


def cut(folder: Path, texts: Sequence[str]) -> None:
    """Rewrite tokenizer, weights and configuration of a folder with a WordPiece vocabulary.

    Raises:
        ValueError: some text is cut into other tokens than before.
    """
    path = folder / "tokenizer.json"
    whole = Tokenizer.from_file(str(path))
    whole.no_truncation()
    encoded = _cut_up(whole, texts)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    special = {one["id"] for one in content["added_tokens"]}
    kept = sorted(special | set(np.unique(np.concatenate(encoded)).tolist()))
    new = {old: place for place, old in enumerate(kept)}
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {piece: new[old] for piece, old in vocabulary.items() if old in new}
    for one in content["added_tokens"]:
        one["id"] = new[one["id"]]
    for one in content["post_processor"]["special_tokens"].values():
        one["ids"] = [new[old] for old in one["ids"]]
    written = json.dumps(content, ensure_ascii=False)
    small = Tokenizer.from_str(written)
    small.no_truncation()
    for before, now in zip(encoded, _cut_up(small, texts), strict=True):
        if not np.array_equal(np.searchsorted(kept, before), now):
            raise ValueError("the cut vocabulary divides a text into other tokens; keep more pieces")
    path.write_text(written, encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in content["model"]["vocab"]), "utf-8")
    tensors = load_file(folder / "model.safetensors")
    # heads for other tasks, as large as the vocabulary, are not read
    tensors = {name: value for name, value in tensors.items() if not name.startswith("cls.")}
    (words,) = (name for name in tensors if name.endswith(_WORDS))
    tensors[words] = tensors[words][kept]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": len(kept), "pad_token_id": new[config.get("pad_token_id", 0)]}
    (folder / "config.json").write_text(json.dumps(config))
