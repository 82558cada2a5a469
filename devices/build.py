"""Building agent bundles: compile the C agent, lay ONNX Runtime and what else it needs beside it, keep the result.

Three kinds, one source (`devices/agent_c`):

- for this machine, with its own compiler and the ONNX Runtime that is installed;
- for any Linux kernel on one of the `PROCESSORS`, phones included: with loader and C library (glibc) beside it, and ONNX Runtime from its
  wheel, so that no NDK is needed;
- for Android's own C library (bionic), with the NDK's compiler and ONNX Runtime's Android archive.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devices.bundle import ENTRY, LIBRARY, Bundle, BundleError, file_sha256
from devices.machine import runtime_name

SOURCES = Path(__file__).parent / "agent_c"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
LIBRARIES = ("-ldl", "-lm", "-lpthread")
NOTHING: Callable[[str], object] = lambda _: None  # noqa: E731


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a bundle is made from.

    Attributes:
        programs: what to compile: the name in the bundle, the sources, and the linker's options.
        files: what to lay beside, by the name in the bundle.
    """

    target: str
    abi: str
    compiler: tuple[str, ...]
    runtime: str
    programs: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    files: dict[str, Path] = field(default_factory=dict)


def sources(*, launcher: bool = False) -> tuple[str, ...]:
    """The agent's C files, or the one of the launcher."""
    return tuple(path.name for path in sorted(SOURCES.glob("*.c")) if (path.name == "launcher.c") == launcher)


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


# -- recipes -------------------------------------------------------------------------------------------------------------------


def host_recipe(compiler: Sequence[str] | None = None) -> Recipe:
    """For this machine.

    Raises:
        BundleError: no compiler, no runtime, or no Linux.
    """
    if sys.platform != "linux":
        raise BundleError("the C agent is for Linux and Android; this machine is measured by the Python agent (--device local)")
    return Recipe(
        target="host",
        abi={"x86_64": "x86_64", "aarch64": "arm64-v8a"}.get(platform.machine(), platform.machine()),
        compiler=tuple(compiler) if compiler else _first_compiler(),
        runtime=_installed_runtime(),
        programs={ENTRY: (sources(), LIBRARIES)},
        files={LIBRARY: installed_library()},
    )


def _first_compiler() -> tuple[str, ...]:
    for name in filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")):
        if shutil.which(name):
            return (name,)
    raise BundleError("no C compiler: install one (Debian: sudo apt install gcc), or name one with --cc")


def _installed_runtime() -> str:
    name = runtime_name()
    if name is None:
        raise BundleError("onnxruntime is not installed: pip install onnxruntime")
    return name


def installed_library() -> Path:
    """The C library in the installed wheel of ONNX Runtime.

    Raises:
        BundleError: it has none.
    """
    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent / "capi" if spec and spec.origin else Path()
    found = sorted(folder.glob(f"{LIBRARY}.*"))
    if not found:
        raise BundleError("the installed onnxruntime has no libonnxruntime.so; wheels have it from 1.20 on: pip install -U onnxruntime")
    return found[0]


# -- making and keeping ------------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where bundles and downloads are kept."""
    import platformdirs

    return platformdirs.user_cache_path("archsearch") / "agents"


def build(recipe: Recipe, *, cache: Path | None = None, force: bool = False, say: Callable[[str], object] = NOTHING) -> Bundle:
    """The bundle that a recipe gives, from the cache where it lies there whole.

    Args:
        cache: the folder for bundles; the user's cache by default.
        force: build it even so.
        say: is told what takes time.

    Raises:
        BundleError: the compiler fails, or the cache cannot be written.
    """
    compiler = compiler_name(recipe.compiler)
    contents = {
        "target": recipe.target,
        "abi": recipe.abi,
        "runtime": recipe.runtime,
        "source": source_sha256(),
        "compiler": [*recipe.compiler, compiler],
        "flags": [FLAGS, recipe.programs],
        "files": {name: file_sha256(path) for name, path in recipe.files.items()},
    }
    key = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]
    place = (cache or cache_folder()) / f"{recipe.target}-{recipe.abi}-{key}"
    if not force and place.is_dir():
        try:
            bundle = Bundle.read(place)
            bundle.check()
            return bundle
        except BundleError:
            say("the bundle in the cache is damaged")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".building-") as folder:
            made = Path(folder) / "bundle"
            made.mkdir()
            say(f"compiling the agent for {recipe.abi} with {compiler}")
            for name, (files, options) in recipe.programs.items():
                compile_program(recipe.compiler, files, options, made / name)
            for name, path in recipe.files.items():
                shutil.copyfile(path, made / name)
                (made / name).chmod(0o755)
            bundle = Bundle(
                folder=made,
                target=recipe.target,
                abi=recipe.abi,
                agent=agent_version(),
                runtime=recipe.runtime,
                source_sha256=source_sha256(),
                compiler=compiler,
                files={path.name: file_sha256(path) for path in sorted(made.iterdir())},
            )
            bundle.write_manifest()
            shutil.rmtree(place, ignore_errors=True)
            os.replace(made, place)
    except OSError as error:
        raise BundleError(f"{error.filename or place}: {error.strerror or error}; the bundle cannot be kept there") from error
    return Bundle.read(place)


def compile_program(
    compiler: Sequence[str], files: Sequence[str], options: Sequence[str], output: Path, flags: Sequence[str] = FLAGS
) -> None:
    """Compile and link some of the agent's sources.

    Raises:
        BundleError: the compiler refuses, with what it says.
    """
    command = [*compiler, *flags, *(str(SOURCES / name) for name in files), "-o", str(output), *options]
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
