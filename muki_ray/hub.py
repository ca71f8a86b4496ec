"""Model folders: from a hub id, a local path or an object store to a local folder; and what is in it.

Knows where files lie and what they hash to; builds no model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

from muki_ray import filesystem as locations
from muki_ray.errors import UserError
from muki_ray.store import fingerprint

# what a classifier needs; nothing else is downloaded, and never code
_METADATA = ["*.json", "*.txt", "*.model", "*.codes", "*.jinja"]
_SAFE = ["*.safetensors"]
_PICKLE = ["*.bin"]
# training leftovers and papers that many folders carry; they do not change what the model answers
_IRRELEVANT = {"trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "all_results.json",
               "eval_results.json", "train_results.json", "metrics.json", "manifest.json", "README.md"}  # fmt: skip


def cache_folder() -> Path:
    """Where downloaded models are kept: `$MUKI_RAY_CACHE`, else `~/.cache/muki_ray`."""
    return Path(os.environ.get("MUKI_RAY_CACHE") or Path("~/.cache/muki_ray").expanduser())


def fetch(location: str, revision: str | None, allow_pickle: bool, error: type[UserError], what: str) -> Path:
    """A local folder with the model's files.

    Args:
        location: folder, URI of a folder (`s3://`, `gs://`, ...), or hub id.
        revision: branch, tag or commit of a hub id.
        allow_pickle: also fetch pickle weights.
        error: kind of error to raise.
        what: how messages call the model, such as `teacher 'news'`.

    Raises:
        UserError: of the kind given; nothing is there, or it cannot be fetched.
    """
    if locations.scheme(location) == "file":
        location = locations.open_location(location)[1]
    if locations.scheme(location):
        return _fetch_uri(location, error, what)
    path = Path(location).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.exists():
        raise error(f"{what}: {location!r} is a file; give the model's folder or a hub id")
    if _is_path(location):
        raise error(f"{what}: no folder at {str(path.absolute())!r}; give the model's folder or a hub id")
    return _fetch_hub(location, revision, allow_pickle, error, what)


def _is_path(location: str) -> bool:
    """Whether a location can only be a path: hub ids are `name` or `owner/name`."""
    return (
        location.startswith(("/", ".", "~"))
        or location.count("/") > 1
        or (os.sep == "\\" and "\\" in location)
    )


def _fetch_hub(
    repo: str, revision: str | None, allow_pickle: bool, error: type[UserError], what: str
) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _METADATA + _SAFE + (_PICKLE if allow_pickle else [])
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as problem:  # whatever the network or the hub said, the model cannot be had
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise error(
            f"{what}: {repo!r} is neither a folder here nor a model that can be had from the hub ({reason}); "
            "check the spelling, the revision and the network"
        ) from problem


def _fetch_uri(location: str, error: type[UserError], what: str) -> Path:
    """Copy a remote folder once per machine; a finished copy is reused while its listing is the same.

    Only the files that can matter are copied, and not what lies in folders below, such as checkpoints.
    """
    from pyarrow import fs

    shown = locations.redact(location)
    filesystem, root = locations.open_location(location)
    try:
        files = [
            info
            for info in filesystem.get_file_info(fs.FileSelector(root))
            if info.type == fs.FileType.File and _relevant(Path(info.path))
        ]
    except UserError as problem:
        raise error(f"{what}: {problem}") from problem
    except OSError as problem:
        raise error(
            f"{what}: cannot list {shown!r} ({problem}); check the URI and the credentials"
        ) from problem
    if not files:
        raise error(f"{what}: no model files in {shown!r}; give the folder that save_pretrained wrote")
    listing = sorted((info.base_name, info.size, info.mtime_ns) for info in files)
    target = cache_folder() / "models" / fingerprint([shown, listing])
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for info in files:
            place = str(temporary / info.base_name)
            locations.copy_file(filesystem, info.path, fs.LocalFileSystem(), place)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another process of this machine was faster
                raise
    except UserError as problem:
        raise error(f"{what}: {problem}") from problem
    except OSError as problem:
        raise error(
            f"{what}: cannot copy {shown!r} to {str(target.parent)!r} ({problem}); "
            "check the network, and that the folder (MUKI_RAY_CACHE) can be written"
        ) from problem
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def weight_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Safetensors files and pickle files of a model folder."""
    safe = sorted(folder.glob("*.safetensors"))
    pickled = sorted(p for p in folder.glob("*.bin") if p.name.startswith(("pytorch_model", "adapter_model")))
    return safe, pickled


def check_weights(
    folder: Path, allow_pickle: bool, error: type[UserError], what: str, can_allow: bool = True
) -> None:
    """Refuse a folder without weights, or with pickle weights only, unless those are allowed.

    Args:
        can_allow: whether there is a setting that allows them, for messages.
    """
    safe, pickled = weight_files(folder)
    if safe or (pickled and allow_pickle):
        return
    if pickled:
        raise error(
            f"{what}: {folder.name!r} has only pickle weights ({pickled[0].name}), which can run code when loaded; "
            f"convert them to safetensors{', or set allow_pickle: true if you trust their source' if can_allow else ''}"
        )
    raise error(
        f"{what}: no weights (*.safetensors) in {str(folder)!r}; give the folder that save_pretrained wrote"
        + (", or allow_pickle: true where there are only pickle weights" if can_allow else "")
    )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a folder's safetensors files, from their headers alone."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder)[0]:
        try:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except SafetensorError as problem:
            raise ValueError(f"{path.name} is not readable safetensors ({problem})") from problem
    return shapes


def content_hash(folder: Path) -> str:
    """Digest of every file that can change what the model answers: weights, configuration, tokenizer.

    Label names do not, and pickle weights do not where there are safetensors: those are loaded.
    """
    safe, pickled = weight_files(folder)
    unused = set(pickled) if safe else set()
    files = sorted(p for p in folder.iterdir() if p.is_file() and _relevant(p) and p not in unused)
    return fingerprint(
        [(p.name, _file_hash(str(p), p.stat().st_size, p.stat().st_mtime_ns)) for p in files], 64
    )


def _relevant(path: Path) -> bool:
    if path.name in _IRRELEVANT or path.name.startswith("."):
        return False
    return any(path.match(pattern) for pattern in (*_METADATA, *_SAFE, *_PICKLE))


@lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, mtime_ns: int) -> str:
    """Content digest; size and time are only the cache key within this process."""
    if Path(path).name == "config.json":
        return fingerprint(_stable_config(json.loads(Path(path).read_text(encoding="utf-8"))), 64)
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stable_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json without label names, and without what says where and by which version it was written."""
    names = ("_name_or_path", "transformers_version", "id2label", "label2id")
    return {k: v for k, v in config.items() if k not in names}
