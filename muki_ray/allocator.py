"""The C library's allocator, told to keep what is freed.

By default glibc hands large blocks back to the system at once, and a network on a CPU asks for the same blocks again in
the next operation: the pages are zeroed anew each time, which costs as much as many of the operations do. Knows
glibc; does nothing where the C library is another one.
"""

from __future__ import annotations

import ctypes

# numbers of mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for its next use; its size stays near its peak. Returns whether it worked."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # one arena: the others cannot grow in place, and would map large blocks after all
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1))
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(accepted)
