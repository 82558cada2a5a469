"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc reuse large blocks instead of handing each back to the system; whether that could be arranged.

    A step allocates the same tensors as the one before. By default, the large ones go back to the system each time and come anew,
    page by page, zeroed: that took a tenth of a training step on a CPU (docs/LOG.md). It holds for the whole process, whose memory
    then stays at its peak. Elsewhere than on Linux with glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return all(mallopt(option, LARGEST) for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
