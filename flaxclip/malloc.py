"""How glibc's malloc treats freed memory; other C libraries are left as they are."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of mallopt(3), as malloc.h numbers them."""


def share_one_heap() -> None:
    """Let all threads take memory from the same heap, so that one uses what another has freed.

    Each thread has a heap of its own otherwise, and what was freed stays there. Where threads
    decode images beside a model on the CPU, that is 100 MB.
    """
    _mallopt(_ARENA_MAX, 1)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step.

    On the CPU a step's buffers come from malloc. If they were returned to the kernel after each
    step, their pages would be zeroed anew for the next: a quarter of the time of a small model's
    step.
    """
    share_one_heap()  # those of threads cannot grow large
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)  # keep up to 2 GiB at the top of the heap
    _mallopt(_MMAP_MAX, 0)  # no mappings of their own for large blocks


def _mallopt(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(parameter, value)
