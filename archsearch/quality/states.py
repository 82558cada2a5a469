"""What trainings that were stopped have learned: files of one machine, from which the same trainings go on.

Going on gives the same result to the last bit, only cheaper, so a file that is missing costs time and nothing else.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from archsearch.model import LanguageModel

LIMIT_BYTES = 2**30
"""So much is kept in one folder, the newest first: most of what was stopped is never taken up again."""
SUFFIX = ".pt"

Curve = list[tuple[int, float]]


def state_file(folder: Path, key: str) -> Path:
    """Where the training of that key (of the whole, `Training.whole`) keeps what it has learned."""
    return folder / f"{key}{SUFFIX}"


def begun(folder: Path) -> set[str]:
    """Keys of the trainings that can go on from here."""
    return {path.stem for path in folder.glob(f"*{SUFFIX}")}


def save(path: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, curve: Curve, spent: float) -> None:
    """Keep what was learned in `spent` CPU seconds, and make room for it."""
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "curve": curve, "seconds": spent}
    new = path.with_suffix(".new")
    torch.save(state, new)
    new.replace(path)
    trim(path.parent)


def load(path: Path | None, model: LanguageModel, optimizer: torch.optim.Optimizer, curve: Curve) -> tuple[int, float]:
    """Take up a training that was stopped: its last step and CPU seconds so far; zeros where there is none."""
    import torch

    if path is None or not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    curve += state["curve"]
    return curve[-1][0], state["seconds"]


def trim(folder: Path, limit: int = LIMIT_BYTES) -> None:
    """Remove the oldest files beyond the limit; others may do so at the same moment."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    kept = 0
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > limit:
            path.unlink(missing_ok=True)
