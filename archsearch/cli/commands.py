"""Importing this registers every command with the app, in the order in which people need them."""

from archsearch.cli import (
    calibrate_command,
    compare_command,
    doctor_command,
    inspect_commands,
    measure_commands,
    search_commands,
    train_commands,
)

__all__ = [
    "calibrate_command",
    "compare_command",
    "doctor_command",
    "inspect_commands",
    "measure_commands",
    "search_commands",
    "train_commands",
]
