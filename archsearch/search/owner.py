"""Which process runs a trial, so that another can tell a trial that goes on from one that was cut off."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Any

import psutil


@cache
def owner() -> dict[str, Any]:
    """This process: its start time tells it from a later one with the same number."""
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_gone(who: dict[str, Any] | None) -> bool:
    """Whether the process that ran a trial has ended. Of one on another machine nothing is known; it counts as alive."""
    if who is None:
        return True
    if who["host"] != platform.node():
        return False
    try:
        return bool(abs(psutil.Process(who["pid"]).create_time() - who["started"]) > 1)
    except psutil.NoSuchProcess:
        return True
