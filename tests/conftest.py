"""Phones for tests, and the way to them kept apart from the developer's own phones and keys."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.phone.bundles import python_bundle
from tests.phone.helpers import free_port, phone_for_test
from tests.phone.phone import FakePhone


@pytest.fixture(scope="session")
def shared_phone() -> Iterator[FakePhone]:
    with phone_for_test() as phone:
        yield phone


@pytest.fixture
def phone(lonely: None, shared_phone: FakePhone) -> FakePhone:
    """A phone as new."""
    shared_phone.reset()
    return shared_phone


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No adb server, no keys: neither the developer's phones nor theirs are touched."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("ADB_VENDOR_KEYS", raising=False)
    monkeypatch.delenv("ADB_SERVER_SOCKET", raising=False)
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))


@pytest.fixture
def adb_server(lonely: None) -> Iterator[Path]:
    """A real adb server of our own; gives its home folder."""
    import shutil

    if shutil.which("adb") is None:
        pytest.skip("no adb here (Debian: adb)")
    home = Path(os.environ["HOME"])
    # Debian's adb writes its log into TMPDIR.
    process = subprocess.Popen(
        ["adb", "server", "nodaemon"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home
    )
    try:
        for _ in range(200):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", int(os.environ["ANDROID_ADB_SERVER_PORT"]))) == 0:
                    break
            time.sleep(0.05)
        yield home
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def agent_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python agent as a phone's bundle."""
    bundle = python_bundle(tmp_path_factory.mktemp("bundle") / "x86_64")
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(bundle))
    return bundle
