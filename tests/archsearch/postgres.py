"""A real PostgreSQL for a test: a cluster of its own in a temporary folder, run by an unprivileged user, on loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


def programs() -> Path | None:
    """Where initdb and pg_ctl are; Debian keeps them out of the PATH."""
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


@dataclass(frozen=True)
class Cluster:
    """A server, and ways to take it away for a while."""

    url: str
    stop: Callable[[], None]
    start: Callable[[], None]


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database of a server that is there for as long as the context is open."""
    with cluster() as server:
        yield server.url


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """The same, with the server itself: stopped at once, as by a power cut, and started again."""
    bin_dir = programs()
    if bin_dir is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    pytest.importorskip("psycopg")
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name  # initdb refuses to be run by root
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if os.getuid() == 0 else []
    home = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if as_user:
            shutil.chown(home, user, user)
        data = home / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(program: str, *arguments: str) -> None:
            command = [*as_user, str(bin_dir / program), *arguments]
            environment = {**os.environ, "LC_ALL": "C"}
            done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, check=False, env=environment)
            assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"

        run("initdb", "-D", str(data), "-U", "search", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c fsync=off"

        def start() -> None:
            # Without -l the server would hold on to our end of the pipe.
            run("pg_ctl", "-D", str(data), "-w", "-l", str(home / "log"), "-o", options, "start")

        def stop() -> None:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")

        start()
        try:
            run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "search", "archsearch")
            yield Cluster(f"postgresql://search@127.0.0.1:{port}/archsearch", stop, start)
        finally:
            stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)
