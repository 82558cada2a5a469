"""What this machine can do at most: reading memory, multiplying. Through numpy's BLAS, so that nothing has to be compiled.

Reading is measured as a matrix-vector product whose matrix is far larger than any cache: the very access that decoding makes, and no
slower than a plain vectorised loop in C (docs/measuring.md). BLAS takes its number of threads from the environment, which the host sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from devices import health
from devices.agent.timing import timed_runs
from devices.plan import LimitResult, RunPlan

COLUMNS = 4096
LEAST_BYTES = 256 * 2**20
CACHES = 4
"""The matrix is at least this many times the last-level cache."""
MATMUL_SIZE = 1024


def measure(plan: RunPlan, watch: health.Watch) -> Iterator[LimitResult]:
    """Both limits for the threads of this process, at least `min_runs` and `min_time_ns` of samples each."""
    yield read_bandwidth(plan, watch)
    yield fp32_matmul(plan, watch)


def read_bandwidth(plan: RunPlan, watch: health.Watch) -> LimitResult:
    """Bytes read from memory: a matrix once over, while vector and result stay in the cache."""
    rows = max(1, read_bytes() // (4 * COLUMNS))
    matrix, vector, result = np.ones((rows, COLUMNS), np.float32), np.ones(COLUMNS, np.float32), np.empty(rows, np.float32)
    before = watch.look()
    samples, _ = timed_runs(lambda: np.dot(matrix, vector, out=result), plan, cpu=None)
    return LimitResult(
        limit="read_bandwidth",
        threads=plan.threads,
        amount=matrix.nbytes,
        wall_ns=tuple(samples),
        method=f"matrix-vector product over {matrix.nbytes / 2**20:.0f} MiB of float32, {blas()}",
        before=before,
        after=watch.look(),
    )


def fp32_matmul(plan: RunPlan, watch: health.Watch) -> LimitResult:
    """Floating-point operations of a square matrix product that fits in the caches."""
    factor = np.full((MATMUL_SIZE, MATMUL_SIZE), 0.5, np.float32)
    result = np.empty_like(factor)
    before = watch.look()
    samples, _ = timed_runs(lambda: np.dot(factor, factor, out=result), plan, cpu=None)
    return LimitResult(
        limit="fp32_matmul",
        threads=plan.threads,
        amount=2 * MATMUL_SIZE**3,
        wall_ns=tuple(samples),
        method=f"matrix product of {MATMUL_SIZE} x {MATMUL_SIZE} float32, {blas()}",
        before=before,
        after=watch.look(),
    )


def read_bytes() -> int:
    """Size of the matrix to read: out of every cache's reach, and at most an eighth of the memory that is free."""
    return min(max(LEAST_BYTES, CACHES * last_level_cache()), psutil.virtual_memory().available // 8)


def last_level_cache() -> int:
    """Bytes of the largest cache that core 0 sees; 0 where the platform does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1))
    return max(sizes)


def blas() -> str:
    """numpy's BLAS and its version."""
    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'BLAS')} {found.get('version', '')}".strip()
