"""Fetch the packages that phones for tests are made of, once, and unpack them beside the system: nothing is installed.

Debian bookworm has no adbd, and trixie's needs a newer glibc; so it comes with its own loader and libraries.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import platformdirs

Arch = Literal["amd64", "arm64"]
DEBS = Path(__file__).with_name("debs.txt")
MIRRORS = ("https://deb.debian.org/debian", "https://snapshot.debian.org/archive/debian/20261123T000000Z")
"""Debian's mirrors drop a version when a newer one is out; the archive of snapshots keeps it."""
LIMIT_S = 60.0


class Unavailable(Exception):
    """Why there is no phone for tests on this machine; tests are skipped with it."""


def unpacked(arch: Arch) -> Path:
    """The folder that holds the packages' files, fetched on the first call.

    Raises:
        Unavailable: no `dpkg-deb`, or no network on the first call.
    """
    if shutil.which("dpkg-deb") is None:
        raise Unavailable("no dpkg-deb: the phone for tests is made of Debian packages")
    wanted = [line.split() for line in DEBS.read_text().splitlines() if line.endswith(f"_{arch}.deb")]
    name = hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]
    cache = Path(platformdirs.user_cache_dir("archsearch")) / "tests-phone"
    folder = cache / f"{arch}-{name}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        new = Path(temporary) / "root"
        new.mkdir()
        with ThreadPoolExecutor(4) as pool:
            packages = list(pool.map(lambda item: _fetch(item[1], item[0], Path(temporary)), wanted))
        for package in packages:
            subprocess.run(["dpkg-deb", "-x", package, new], check=True)
        new.chmod(0o755)
        if not folder.exists():
            os.replace(new, folder)
    return folder


def _fetch(path: str, sha256: str, folder: Path) -> Path:
    data, reasons = b"", []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(f"{mirror}/{quote(path, safe='/%')}", timeout=LIMIT_S) as answer:
                data = answer.read()
            break
        except (urllib.error.URLError, OSError) as error:
            reasons.append(f"{mirror}: {error}")
    else:
        raise Unavailable(f"{path} cannot be fetched ({'; '.join(reasons)})")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise Unavailable(f"{path}: its sha256 is not the one in {DEBS.name}")
    target = folder / path.rsplit("/", 1)[1]
    target.write_bytes(data)
    return target


if __name__ == "__main__":
    for arch in ("amd64", "arm64"):
        try:
            print(f"packages of the {arch} phone for tests: {unpacked(arch)}")
        except Unavailable as reason:
            print(f"no {arch} phone for tests: {reason}")
