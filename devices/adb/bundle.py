"""The agent for a phone's processor: a folder with a program `agent`, what it needs, and a manifest."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from devices.adb.files import Folder, folder

MANIFEST = "manifest.json"
ENTRY = "agent"


@dataclass(frozen=True, slots=True)
class Bundle:
    """Attributes:
    abi: Android's name of the processors it runs on, "arm64-v8a" or "x86_64".
    runtime: "onnxruntime 1.32.0".
    """

    path: Path
    abi: str
    runtime: str

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """A bundle as its manifest tells it.

        Raises:
            ValueError: no bundle lies there.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            return cls(path, manifest["abi"], manifest["runtime"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no agent bundle ({error}); `archsearch agent build` makes one") from error

    @property
    def folder(self) -> Folder:
        return folder("bundles", (path for path in self.path.iterdir() if path.is_file()))


def find_bundle(abis: tuple[str, ...]) -> Bundle:
    """The bundle for one of these ABIs: the folder that ARCHSEARCH_AGENT names, or what `archsearch agent build` has left in the cache.

    Raises:
        ValueError: there is none; says how to make one.
    """
    chosen = os.environ.get("ARCHSEARCH_AGENT")
    if not chosen:
        return _built(abis)
    bundle = Bundle.read(Path(chosen))
    if bundle.abi not in abis:
        raise ValueError(f"ARCHSEARCH_AGENT={chosen} is for {bundle.abi}: build one for it with `archsearch agent build`")
    return bundle


def _built(abis: tuple[str, ...]) -> Bundle:
    from devices.build import built
    from devices.recipes import PROCESSORS

    known = [abi for abi in PROCESSORS if abi in abis]
    for abi in known:
        if found := built(abi):
            return Bundle.read(found.folder)
    if not known:
        raise ValueError(f"there are agents for {' and '.join(PROCESSORS)}: `archsearch agent build --help`")
    raise ValueError(f"build one with `archsearch agent build --abi {known[0]}`, then run this again")
