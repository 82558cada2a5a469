"""What a search tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archsearch.quality import LayoutQuality
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """A trial ended: `trained` of `wanted` layouts are trained so far; the rest takes about `seconds_left`."""

    trained: int
    wanted: int
    trial: int
    pattern: str
    outcome: str
    seconds_left: float | None = None


@dataclass
class Batch:
    """Trials that are to be trained now, and what was told of those that are not."""

    accepted: list[tuple[optuna.trial.Trial, ArchSpec]]
    refused: list[SearchEvent]


def said(quality: LayoutQuality) -> str:
    """What trainings found, in a line."""
    tasks = [
        f"{r.task.replace('_', ' ')} {r.value:.0%} ({'solved' if r.status == 'resolved' else 'unresolved'})" for r in quality.synthetic
    ]
    return f"{', '.join(tasks)}, {quality.text.value:.3f} bits/byte"
