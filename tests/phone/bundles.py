"""Agents for phones under test."""

from __future__ import annotations

import sys
from pathlib import Path

from devices.bundle import Bundle, file_sha256
from devices.machine import runtime_name

PROJECT = Path(__file__).resolve().parents[2]


def python_bundle(folder: Path, *, script: str | None = None, abi: str = "x86_64") -> Path:
    """A bundle that starts the Python agent of this checkout, or a script in its place. The amd64 phone sees this machine's files."""
    folder.mkdir(parents=True, exist_ok=True)
    start = f"PYTHONPATH={PROJECT} exec {sys.executable} -P -m devices.agent"
    if script is not None:
        (folder / "script.py").write_text(script)
        start = f"PYTHONPATH={PROJECT} exec {sys.executable} -P script.py"
    (folder / "agent").write_text(f"#!/bin/sh\n{start}\n")
    (folder / "agent").chmod(0o755)
    Bundle(
        folder=folder,
        target="host",
        abi=abi,
        agent="python",
        runtime=str(runtime_name()),
        source_sha256="",
        compiler="",
        files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    ).write_manifest()
    return folder
