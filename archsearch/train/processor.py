"""How matrices are multiplied where nobody says: by what the processor is, not by a clock, so that one machine always trains alike."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from archsearch.train.products import onednn_is_exact
from archsearch.train.settings import Dtype, Products

CPU_INFO, CGROUP_LIMIT = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")


def default_dtype(device: str) -> Dtype:
    """bf16 where the processor multiplies it by instructions of its own: GPUs since 2020, x86 with AVX512-BF16 or AMX.

    Elsewhere a CPU emulates it, many times slower than fp32. ARM's instructions are left out: torch uses them in some of its
    builds only, which nothing tells.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def default_products(device: str) -> Products:
    """The library for fp32 matrices: oneDNN on a CPU with AVX-512 of which torch's BLAS, Intel's, makes no use; and only where it is
    found to be as exact as BLAS."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device != "cpu" or not has_onednn or torch.backends.cpu.get_cpu_capability() != "AVX512" or made_by_intel():
        return "blas"
    return "onednn" if onednn_is_exact() else "blas"


def made_by_intel() -> bool:
    """Whether the processor says so."""
    try:
        return "GenuineIntel" in CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


def default_threads() -> int:
    """Torch's count (the cores, or OMP_NUM_THREADS), but no more than this process may use: of a container with two of a server's
    64 cores, 64 threads would wait for each other."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), allowed, _granted() or allowed))


def _granted() -> int | None:
    """Cores that the container may use at once (cgroup v2), at least one; None without a limit."""
    try:
        quota, period = CGROUP_LIMIT.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))
