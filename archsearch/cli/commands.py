"""Importing this registers every command with the app, in the order in which people need them."""

from __future__ import annotations

from typer.models import CommandInfo, TyperInfo

from archsearch.cli import (
    agent_command,
    calibrate_command,
    compare_command,
    confirm_command,
    doctor_command,
    inspect_commands,
    measure_commands,
    plan_command,
    search_commands,
    train_commands,
    validate_command,
    worker_command,
)
from archsearch.cli.app import app

__all__ = [
    "agent_command",
    "calibrate_command",
    "compare_command",
    "confirm_command",
    "doctor_command",
    "inspect_commands",
    "measure_commands",
    "plan_command",
    "search_commands",
    "train_commands",
    "validate_command",
    "worker_command",
]

PANELS = {
    "Start here": ("run", "devices", "doctor"),
    "Measure and predict": ("profile", "calibrate", "predict", "bench", "compare", "merge", "agent"),
    "Search and read": ("search", "validate", "confirm", "worker", "report"),
    "Models": ("spec", "plan", "train", "export", "import"),
}
"""Commands as `archsearch --help` lists them."""


def _arrange() -> None:
    """Put what the modules registered into the panels, in their order; a command without a panel is a KeyError at the first `--help`."""
    places = {name: (panel, place) for place, (panel, name) in enumerate((p, n) for p, names in PANELS.items() for n in names)}

    def place(known: CommandInfo | TyperInfo) -> tuple[str, int]:
        return places[str(known.name or getattr(known.callback, "__name__", ""))]

    registered: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
    for known in registered:
        known.rich_help_panel = place(known)[0]
    app.registered_commands.sort(key=lambda known: place(known)[1])


_arrange()
