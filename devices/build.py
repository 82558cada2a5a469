"""Building agent bundles and finding them again: compile the C agent, lay what it needs beside it, keep the result by what went into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from devices.bundle import Bundle, BundleError, file_sha256
from devices.machine import runtime_name
from devices.recipes import PROCESSORS, SOURCES, Program, Recipe

FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")


def source_sha256() -> str:
    """Of all sources and headers, with their names."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def agent_version() -> str:
    """ "c-1", as the sources have it."""
    found = re.search(r'#define AGENT_VERSION "([^"]+)"', (SOURCES / "agent.h").read_text(encoding="utf-8"))
    assert found
    return found[1]


def cache_folder() -> Path:
    """Where bundles and downloads are kept."""
    import platformdirs

    return platformdirs.user_cache_path("archsearch") / "agents"


def build(recipe: Recipe, *, cache: Path | None = None, force: bool = False, say: Callable[[str], object] = lambda _: None) -> Bundle:
    """The bundle that a recipe gives, from the cache where it lies there whole.

    Args:
        cache: the folder for bundles; the user's cache by default.
        force: build it even so.
        say: is told what takes time.

    Raises:
        BundleError: the compiler fails, or the cache cannot be written.
    """
    compiler = compiler_name(recipe.compiler)
    place = (cache or cache_folder()) / f"{recipe.target}-{recipe.abi}-{_key(recipe, compiler)}"
    if not force and (known := _whole(place)):
        return known
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".building-") as folder:
            made = Path(folder) / "bundle"
            made.mkdir()
            say(f"compiling the agent for {recipe.abi} with {compiler}")
            for program in recipe.programs:
                compile_program(recipe.compiler, program, made)
            for name, path in recipe.files.items():
                shutil.copyfile(path, made / name)
                (made / name).chmod(0o755)
            Bundle(
                folder=made,
                target=recipe.target,
                abi=recipe.abi,
                agent=agent_version(),
                runtime=recipe.runtime,
                source_sha256=source_sha256(),
                compiler=compiler,
                files={path.name: file_sha256(path) for path in sorted(made.iterdir())},
            ).write_manifest()
            _put(made, place, force=force)
    except OSError as error:
        raise BundleError(f"{error.filename or place}: {error.strerror or error}; the bundle cannot be kept there") from error
    return Bundle.read(place)


def built(abi: str, *, cache: Path | None = None) -> Bundle | None:
    """The bundle for phones with a processor that the cache has, of the sources as they are; for Android's C library if there is one."""

    def rank(bundle: Bundle) -> tuple[bool, bool, float]:
        return bundle.target == "bionic", bundle.runtime == runtime_name(), bundle.entry.stat().st_mtime

    places = [place for target in ("bionic", "glibc") for place in (cache or cache_folder()).glob(f"{target}-{abi}-*")]
    whole = [bundle for place in places if (bundle := _whole(place)) and bundle.source_sha256 == source_sha256()]
    return max(whole, key=rank, default=None)


def find_bundle(abis: Sequence[str]) -> Bundle:
    """A phone's bundle: in the folder that ARCHSEARCH_AGENT names, or else what `archsearch agent build` has left in the cache.

    Args:
        abis: what the phone's processor runs, the best first.

    Raises:
        BundleError: there is none; says how to make one.
    """
    if chosen := os.environ.get("ARCHSEARCH_AGENT"):
        bundle = Bundle.read(Path(chosen))
        if bundle.abi not in abis:
            raise BundleError(f"ARCHSEARCH_AGENT={chosen} is for {bundle.abi}: build one for it with `archsearch agent build`")
        return bundle
    known = [abi for abi in PROCESSORS if abi in abis]
    for abi in known:
        if found := built(abi):
            return found
    if not known:
        raise BundleError(f"there are agents for {' and '.join(PROCESSORS)}: `archsearch agent build --help`")
    raise BundleError(f"build one with `archsearch agent build --abi {known[0]}`, then run this again")


def _key(recipe: Recipe, compiler: str) -> str:
    """Everything that decides what is in the bundle."""
    contents = {
        **asdict(recipe),
        "source": source_sha256(),
        "compiler": [*recipe.compiler, compiler],
        "flags": FLAGS,
        "files": {name: file_sha256(path) for name, path in recipe.files.items()},
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def _whole(place: Path) -> Bundle | None:
    """The bundle that lies there undamaged, if any."""
    try:
        bundle = Bundle.read(place)
        bundle.check()
    except BundleError:
        return None
    return bundle


def _put(made: Path, place: Path, *, force: bool) -> None:
    """Rename a new bundle into place. Where somebody else has built the same one meanwhile, theirs stays."""
    if force or not _whole(place):
        shutil.rmtree(place, ignore_errors=True)
    try:
        os.replace(made, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def compile_program(compiler: Sequence[str], program: Program, folder: Path, flags: Sequence[str] = FLAGS) -> None:
    """Compile and link a program into a folder.

    Raises:
        BundleError: the compiler refuses, with what it says.
    """
    output = folder / program.name
    command = [*compiler, *flags, *(str(SOURCES / name) for name in program.files), "-o", str(output), *program.options]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        wrong = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:] or ["it says nothing"]
        raise BundleError(f"{' '.join(compiler)} cannot compile the agent: {wrong[0]}")


def compiler_name(compiler: Sequence[str]) -> str:
    """How a compiler names itself.

    Raises:
        BundleError: it is not there, or does not run.
    """
    try:
        done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise BundleError(f"{compiler[0]}: {error.strerror}; name a C compiler with --cc") from error
    if done.returncode != 0 or not done.stdout.strip():
        raise BundleError(f"{' '.join(compiler)} is no C compiler that works; name one with --cc")
    return done.stdout.splitlines()[0].strip()
