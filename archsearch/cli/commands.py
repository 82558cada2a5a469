"""Importing this registers every command with the app, in the order in which people need them."""

from archsearch.cli import (
    agent_command,
    calibrate_command,
    compare_command,
    confirm_command,
    doctor_command,
    inspect_commands,
    measure_commands,
    search_commands,
    train_commands,
    validate_command,
    worker_command,
)

__all__ = [
    "agent_command",
    "calibrate_command",
    "compare_command",
    "confirm_command",
    "doctor_command",
    "inspect_commands",
    "measure_commands",
    "search_commands",
    "train_commands",
    "validate_command",
    "worker_command",
]
