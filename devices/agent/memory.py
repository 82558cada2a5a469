"""How much memory this process takes, and whether a model can fit at all."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

MUCH = 256 * 2**20
"""Anonymous bytes from which the share of huge pages is told: below, the interpreter's own small pages weigh in."""


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def rollup() -> dict[str, int]:
    """Linux's summary of this process's mappings ("Pss", "Anonymous", "AnonHugePages", ...), in bytes; empty elsewhere."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name.rstrip(":"): int(size) * 1024 for name, size, *_ in (line.split() for line in lines)}


def huge_page_share() -> float | None:
    """Share of this process's anonymous memory that lies in huge pages; None where there is too little of it to say anything."""
    now = rollup()
    return now["AnonHugePages"] / now["Anonymous"] if now.get("Anonymous", 0) >= MUCH else None


def peak() -> int:
    """Highest resident set of this process's life, in bytes. Never reset: the peak while loading is memory a user needs, too."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def refuse_unfit(model: Path) -> None:
    """Stop before a model that cannot fit makes the system kill processes, perhaps not this one.

    Raises:
        MemoryError: the model's files (it and its external data, named after it) are larger than what is available.
    """
    size = sum(file.stat().st_size for file in model.parent.glob(f"{model.name}*") if file.is_file())
    available = psutil.virtual_memory().available
    if size > available:
        sizes = f"the model alone takes {size / 1e6:,.0f} MB and {available / 1e6:,.0f} MB are available"
        raise MemoryError(f"{sizes}; close other programs, or measure fewer models at once")
