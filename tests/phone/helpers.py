"""Phones, the real adb client, and free ports, for tests of any package."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.phone.install import Arch, Unavailable
from tests.phone.phone import FakePhone


@contextmanager
def phone_for_test(arch: Arch = "amd64", **options: object) -> Iterator[FakePhone]:
    """A phone, or a skipped test where there cannot be one."""
    try:
        phone = FakePhone(arch, **options)  # type: ignore[arg-type]
    except Unavailable as reason:
        pytest.skip(str(reason))
    with phone:
        yield phone


def adb(*arguments: str) -> str:
    """The real adb client."""
    done = subprocess.run(["adb", *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
