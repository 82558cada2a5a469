"""Rows of what longer trainings confirmed: the search's layouts, random ones and the baseline, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["search", "random", "baseline"]
Word = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """A layout beside another, or beside several: bits per byte, paired by seed, and what is to be said.

    Attributes:
        low, high: 95 % interval of the difference; None of a single seed.
        word: by recall, where that differs; else by text, if it differs by more than its interval.
    """

    mean: float
    low: float | None
    high: float | None
    word: Word


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmedRow:
    """One layout of a contest, best first.

    Attributes:
        seeds: bits per byte of each training.
        half: of the 95 % interval of their mean; None where no layout has a second seed.
        solved: synthetic trainings that were solved, of `synthetic`; None where there were none of this layout.
        random: beside the mean of the random layouts; None for one of them.
    """

    pattern: str
    role: Role
    seeds: tuple[float, ...]
    half: float | None = None
    winner: bool = False
    solved: int | None = None
    synthetic: int = 0
    baseline: Beside | None = None
    random: Beside | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """All layouts at one width. `label` is of the view, "width 256"; `note` says what was trained."""

    label: str
    note: str
    rows: tuple[ConfirmedRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """`winner` is whether one was named; `why` says by what, or why not. `at_scale`: whether that holds at larger widths."""

    winner: bool
    why: str
    contests: tuple[Contest, ...]
    at_scale: str = ""
