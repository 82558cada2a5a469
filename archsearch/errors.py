"""The tree of errors. Each message is one line: what is wrong, where, and what to do next.

ArchsearchError
├── InputError               wrong usage: exit code 2
│   ├── FileFormatError      a file with an unknown key, a wrong type, an impossible value: names file and field
│   ├── NoCounterpartError   a layout that another program has no model for: names every field that stands in the way
│   ├── BudgetError          a budget that does not parse or names nothing that is predicted
│   └── EmulatedTimesError   times of an emulated device, asked for as numbers (archsearch.emulated)
├── RunError                 a failure: exit code 1
│   ├── StoreError           a database that is corrupt, of a newer version, or cannot be written
│   ├── CheckpointError      a checkpoint that is incomplete or corrupt
│   ├── MissingMeasurement   a prediction needs a block or workload that the table lacks
│   └── ParityError          an exported model does not compute what the trained one does
├── ToldElsewhere            another process of the same training tells the user
└── (errors of the leaf packages are turned into these at the command line)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ArchsearchError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 1


class InputError(ArchsearchError):
    """The user asked for something that cannot be."""

    exit_code = 2


class FileFormatError(InputError):
    """A file that does not say what it should. `field` is the dotted path inside it, if there is one."""

    def __init__(self, path: Path | str | None, field: str | None, problem: str) -> None:
        where = ": ".join(str(part) for part in (path, field) if part)
        super().__init__(f"{where}: {problem}" if where else problem)
        self.path = Path(path) if path else None
        self.field = field
        self.problem = problem


class NoCounterpartError(InputError):
    """Something that another program cannot be told; `reasons` holds (field, why) pairs."""

    def __init__(self, what: str, reasons: Sequence[tuple[str, str]], advice: str = "") -> None:
        shown = [f"{field}: {why}" for field, why in reasons[:3]]
        if len(reasons) > len(shown):
            shown.append(f"and {len(reasons) - len(shown)} more")
        super().__init__(f"{what}: {'; '.join(shown)}{advice and f'; {advice}'}")
        self.reasons = tuple(reasons)


class BudgetError(InputError):
    """A budget that does not parse."""


class RunError(ArchsearchError):
    """Something failed that was asked for rightly."""


class StoreError(RunError):
    """The measurements database cannot be read or written."""


class CheckpointError(RunError):
    """A checkpoint cannot be read or written."""


class MissingMeasurement(RunError):
    """The cost table lacks what a prediction needs; the message names the command that measures it."""


class ParityError(RunError):
    """An exported model's outputs are not those of the trained one."""


class ToldElsewhere(ArchsearchError):
    """What ended this process ended others too, and the first of them tells the user."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
