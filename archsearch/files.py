"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from archsearch.errors import RunError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary name beside the target, flush to disk, and rename.

    Raises:
        RunError: the disk is full or the place cannot be written; what was there before is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}; free some space or choose another place") from error


def await_folder(path: Path, seconds: float = 60) -> None:
    """Wait until a folder that another process has made is seen from here: a network file system may take a while to show it.

    Raises:
        RunError: it does not appear.
    """
    deadline = time.monotonic() + seconds
    while not path.is_dir():
        if time.monotonic() > deadline:
            raise RunError(f"{path}: is not seen from {socket.gethostname()}; --out must lie in a folder that all nodes share")
        time.sleep(0.2)


def read_json(path: Path) -> Any:
    """A JSON file that one of our commands wrote.

    Raises:
        RunError: it cannot be read, or is not JSON any more.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path}: is damaged, not JSON ({error}); remove it, and the command that wrote it makes it anew") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
