"""Agent bundles: a folder with the C agent, ONNX Runtime and all else that it needs on the machine it is for.

A bundle's entry is its program `agent`, which runs from any working directory. `manifest.json` tells what is in it, so that a phone
gets it once and a damaged one is noticed. `devices.recipes` says what goes into one, `devices.build` makes it and finds it again, in a
folder named after everything that went into it, and `devices.adb.files` brings it to a phone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.base import AgentError

MANIFEST = "manifest.json"
ENTRY = "agent"
LIBRARY = "libonnxruntime.so"
"""The agent looks for it beside itself."""


class BundleError(AgentError):
    """A bundle that cannot be built, or is not what its manifest says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Attributes:
    target: what it is for: "host" (this machine), "glibc" (any Linux kernel; brings loader and C library), "bionic" (Android).
    abi: the processor, by Android's name: "x86_64", "arm64-v8a".
    agent: its version, "c-1".
    runtime: "onnxruntime 1.32.0".
    source_sha256: of the agent's sources.
    compiler: as it names itself.
    files: SHA-256 of each file but the manifest, by its name; there are no folders within.
    """

    folder: Path
    target: str
    abi: str
    agent: str
    runtime: str
    source_sha256: str
    compiler: str
    files: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Bundle:
        """A bundle as its manifest tells it; its files are not looked at.

        Raises:
            BundleError: there is none.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            return cls(folder=folder, **manifest)
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{folder}: no agent bundle ({error}); `archsearch agent build` makes one") from error

    @property
    def entry(self) -> Path:
        return self.folder / ENTRY

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files)

    def write_manifest(self) -> None:
        manifest = asdict(self)
        del manifest["folder"]
        (self.folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def check(self) -> None:
        """Compare every file with the manifest.

        Raises:
            BundleError: one is missing, or is another.
        """
        for name, expected in self.files.items():
            path = self.folder / name
            if not path.is_file() or file_sha256(path) != expected:
                raise BundleError(f"{path} is not what {MANIFEST} says: build the bundle again with `archsearch agent build --force`")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
