"""What we keep on a phone: bundles and models, each in a folder named after its content, complete or not there.

A folder is pushed beside its place, its files' SHA-256 are compared with what the phone computes of them, and it is renamed into place.
What a cut cable leaves half pushed is removed by the next run.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import secrets
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from devices.adb.errors import LinkLostError, PhoneFullError, ShellFailedError
from devices.adb.session import HOME
from devices.adb.shell import check, run
from devices.adb.stream import Link
from devices.adb.sync import PushFailed, push
from devices.bundle import Bundle

log = logging.getLogger(__name__)
HASH_LIMIT_S = 300.0
"""A phone needs a while for a large model."""
SPARE = 16 * 2**20
"""Space that is left to others."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files that belong together.

    Attributes:
        kind: "bundles" or "models".
        name: of the folder on the phone; says what is in it.
        files: each with the SHA-256 of its content and its mode.
    """

    kind: str
    name: str
    files: tuple[tuple[Path, str, int], ...]

    @property
    def target(self) -> str:
        return f"{HOME}/{self.kind}/{self.name}"

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path, _, _ in self.files)


def folder(kind: str, files: Iterable[Path]) -> Folder:
    """A folder of these files, named after what is in them.

    Raises:
        OSError: one cannot be read.
    """
    found = tuple((path, sha256(path), 0o755 if path.stat().st_mode & 0o100 else 0o644) for path in sorted(files))
    identity = "".join(f"{path.name}\0{digest}\0{mode:o}\0" for path, digest, mode in found)
    return Folder(kind, hashlib.sha256(identity.encode()).hexdigest()[:16], found)


def bundle_folder(bundle: Bundle) -> Folder:
    """An agent bundle, as one folder."""
    return folder("bundles", (path for path in bundle.folder.iterdir() if path.is_file()))


def model_files(model: Path) -> list[Path]:
    """A model and its external data, which lies beside it and is named after it."""
    return [path for path in model.parent.glob(f"{glob.escape(model.name)}*") if path.is_file()]


def model_folder(model: Path) -> Folder:
    """What a model consists of, as one folder."""
    return folder("models", model_files(model))


def sha256(path: Path) -> str:
    """Of a file's content; computed anew when the file has changed."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bring(link: Link, wanted: Sequence[Folder], *, sent: Callable[[Folder, int], object] = lambda *_: None) -> None:
    """Have these folders on the phone; what is there already is not pushed again. The phone must be ours (`session.taken`).

    Args:
        sent: called with the folder and the number of bytes, again and again.

    Raises:
        PhoneFullError: they do not fit, also when models that are not wanted now are removed.
        LinkLostError: the connection broke; what is complete stays.
    """
    run(link, f"rm -rf {HOME}/incoming-*")
    there = set(run(link, f"cd {HOME} && ls -d bundles/* models/* 2>/dev/null").stdout.split())
    missing = [item for item in dict.fromkeys(wanted) if f"{item.kind}/{item.name}" not in there]
    if not missing:
        return
    needed = sum(item.size for item in missing)
    kept = {f"{item.kind}/{item.name}" for item in wanted}
    free = free_bytes(link)
    if free is not None and free < needed + SPARE:
        for name in sorted(there - kept):
            check(link, f"rm -rf {HOME}/{name}", "removing an old model")
        free = free_bytes(link)
        if free is not None and free < needed + SPARE:
            raise PhoneFullError(link.device_id, needed, free)
    for item in missing:
        _push(link, item, lambda count, item=item: sent(item, count))  # type: ignore[misc]


def free_bytes(link: Link) -> int | None:
    """Bytes free where we keep our files; None when the phone does not say."""
    lines = run(link, f"df -k {HOME}").stdout.split("\n")
    fields = lines[1].split() if len(lines) > 1 else []
    return int(fields[3]) * 1024 if len(fields) > 3 and fields[3].isdigit() else None


def _push(link: Link, item: Folder, sent: Callable[[int], object]) -> None:
    incoming = f"{HOME}/incoming-{secrets.token_hex(4)}"
    check(link, f"mkdir -p {incoming} {HOME}/{item.kind}", "making a folder")
    log.debug("%s: pushing %s, %d bytes", link.device_id, item.target, item.size)
    for path, _, mode in item.files:
        try:
            push(link, path, f"{incoming}/{path.name}", mode=mode, sent=sent)
        except PushFailed as error:
            run(link, f"rm -rf {incoming}")
            if "No space left" in str(error) or "ENOSPC" in str(error):
                raise PhoneFullError(link.device_id, item.size, free_bytes(link)) from error
            raise ShellFailedError(link.device_id, f"writing {path.name}", 1, str(error)) from error
    _verify(link, item, incoming)
    modes = " && ".join(f"chmod {mode:o} {incoming}/{shlex.quote(path.name)}" for path, _, mode in item.files)
    check(link, f"{modes} && mv {incoming} {item.target}", "moving what was pushed into place")


def _verify(link: Link, item: Folder, incoming: str) -> None:
    names = " ".join(shlex.quote(path.name) for path, _, _ in item.files)
    said = check(link, f"cd {incoming} && sha256sum {names}", "checking what was pushed", timeout_s=HASH_LIMIT_S)
    digests = {line.split(None, 1)[1].strip().lstrip("*"): line.split(None, 1)[0] for line in said.splitlines() if " " in line}
    for path, digest, _ in item.files:
        if digests.get(path.name) != digest:
            run(link, f"rm -rf {incoming}")
            raise LinkLostError(link.device_id, f"{path.name} arrived damaged")
