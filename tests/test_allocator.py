"""The allocator keeps what is freed."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from muki_ray.allocator import keep_freed_memory
import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "keep":
    assert keep_freed_memory()
block = torch.ones(64 << 20, dtype=torch.uint8)
before = resident()
del block
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_stays() -> None:
    def given_back(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert given_back("plain") > 60 << 20
    assert given_back("keep") < 4 << 20
