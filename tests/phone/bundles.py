"""Agents for phones under test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from devices.machine import runtime_name

PROJECT = Path(__file__).resolve().parents[2]


def python_bundle(folder: Path, *, script: str | None = None) -> Path:
    """A bundle that starts the Python agent of this checkout, or a script in its place. The amd64 phone sees this machine's files."""
    folder.mkdir(parents=True, exist_ok=True)
    start = f"PYTHONPATH={PROJECT} exec {sys.executable} -P -m devices.agent"
    if script is not None:
        (folder / "script.py").write_text(script)
        start = f"PYTHONPATH={PROJECT} exec {sys.executable} -P script.py"
    (folder / "agent").write_text(f"#!/bin/sh\n{start}\n")
    (folder / "agent").chmod(0o755)
    (folder / "manifest.json").write_text(json.dumps({"abi": "x86_64", "runtime": runtime_name()}))
    return folder
