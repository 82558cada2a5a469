"""Runs the command line as a user does: in a process of its own, or in this one where that says as much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "300",
}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything beside it is an error."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The line that says what went wrong: the last on stderr, and the only one of its kind."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err
        return lines[0]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "archsearch", *map(str, arguments)]


def run_command(*arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """The command in a process of its own."""
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, check=False, timeout=280)
    return Outcome(ended.returncode, ended.stdout, ended.stderr)
