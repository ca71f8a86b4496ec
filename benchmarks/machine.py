"""What the machine can do at most, and what a forward pass needs: the two numbers that efficiency is made of.

Knows Torch; knows no model code, no data. `python benchmarks/machine.py` prints the limits.

Shapes: N rows, T tokens of a row, h hidden size.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# rows x inner x columns: squares as large as a cache likes them, and the products of a small encoder
_SHAPES = [(2048, 2048, 2048), (4096, 4096, 4096), (8192, 384, 1536), (8192, 1536, 384), (2048, 384, 1536)]
# a GPU needs larger ones to be busy
_SHAPES_CUDA = [(8192, 8192, 8192), (16384, 4096, 4096), (65536, 768, 3072), (65536, 3072, 768)]
_LEAST_RUNS = 3


def device_of(name: str) -> torch.device:
    """`cpu`, `cuda`, or `auto`; ends with one line where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            f"error: --device {name}: this machine has no GPU that Torch can use; give --device cpu"
        )
    return torch.device(name)


def use_threads(threads: int | None = None) -> int:
    """Set Torch's threads on purpose: by default all CPUs that this process may use. Returns their number."""
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards counts all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_limit(device: torch.device, dtype: torch.dtype, seconds: float = 0.7) -> float:
    """The machine's matrix product limit in FLOP/s: best shape, best of repeated runs.

    Both layouts of the weight are tried (`x @ w` and `x @ w.T`): libraries differ in which they like.

    Args:
        device, dtype: where and in what; sums of products are accumulated as the library does.
        seconds: spent per shape, about; one run may take longer.
    """
    shapes = _SHAPES_CUDA if device.type == "cuda" else _SHAPES
    with torch.inference_mode():
        return max(_shape_limit(shape, device, dtype, seconds) for shape in shapes)


def _shape_limit(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, seconds: float
) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    best = float("inf")
    for right in (torch.randn(inner, columns, device=device), torch.randn(columns, inner, device=device).T):
        right = right.to(dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)
        torch.mm(left, right, out=out)
        synchronize(device)
        began, runs = time.perf_counter(), 0
        while runs < _LEAST_RUNS or time.perf_counter() - began < seconds / 2:
            start = time.perf_counter()
            torch.mm(left, right, out=out)
            synchronize(device)
            best = min(best, time.perf_counter() - start)
            runs += 1
    return 2.0 * rows * inner * columns / best


def forward_flops(config: Any, lengths: Sequence[int], *, read_tokens: int | None = None) -> float:
    """FLOPs of one forward of a BERT-like classifier on real tokens only; padding counts nothing.

    Per layer `2 T (4 h^2 + 2 h ffn)` for the projections and `4 T^2 h` for attention, and once a row
    `2 h^2 + 2 h C` for pooler and head. A training step costs three times that: the backward multiplies twice.

    Args:
        config: a Transformers configuration.
        lengths: real tokens per row, `[N]`.
        read_tokens: tokens per row that the head reads. Given, the last layer counts only what these need (keys
            and values of all tokens, all else of the read ones); by default it counts in full.
    """
    h, layers = config.hidden_size, config.num_hidden_layers
    ffn = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None) or 4 * h
    head = 2.0 * h * h + 2.0 * h * config.num_labels
    full = [2.0 * t * (4 * h * h + 2 * h * ffn) + 4.0 * t * t * h for t in lengths]
    if read_tokens is None:
        return layers * sum(full) + head * len(full)
    last = 0.0
    for t in lengths:
        read = min(read_tokens, t)
        last += 2.0 * t * 2 * h * h + 2.0 * read * (2 * h * h + 2 * h * ffn) + 4.0 * read * t * h
    return (layers - 1) * sum(full) + last + head * len(full)


def describe(device: torch.device) -> dict[str, Any]:
    """What this was measured on."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {"device": _cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def limits(device: torch.device, seconds: float = 0.7) -> dict[str, Any]:
    """The machine as a table: name, threads, and FLOP/s in every type that the benchmarks use."""
    types = [torch.float32, torch.bfloat16] + ([torch.float16] if device.type == "cuda" else [])
    measured = {f"{str(t).removeprefix('torch.')}_flops": matrix_limit(device, t, seconds) for t in types}
    return {**describe(device), **measured}


def main() -> None:
    """Print the limits of this machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--json", help="also write to this file")
    options = parser.parse_args()
    device = device_of(options.device)
    use_threads()
    machine = limits(device)
    for name, value in machine.items():
        print(
            f"{name:>16}: {value / 1e9:,.0f} GFLOP/s" if name.endswith("_flops") else f"{name:>16}: {value}"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"machine": machine}, indent=2) + "\n")


if __name__ == "__main__":
    main()
