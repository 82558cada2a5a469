"""What goes into an agent bundle, for each kind of machine.

- `host_recipe`: this machine, with its own compiler and the ONNX Runtime that is installed;
- `glibc_recipe`: any Linux kernel, phones included, with loader and C library (glibc) beside the agent and ONNX Runtime from its wheel;
  needs a cross compiler, no NDK;
- `bionic_recipe`: Android's own C library, with the NDK's compiler and ONNX Runtime's Android archive.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from devices.bundle import ENTRY, LIBRARY, BundleError
from devices.machine import runtime_name

SOURCES = Path(__file__).parent / "agent_c"
LAUNCHER = "launcher.c"
LIBRARIES = ("-ldl", "-lm", "-lpthread")
Abi = Literal["arm64-v8a", "x86_64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """How one processor is called by whom."""

    machine: str
    """By the kernel, by compilers, by wheels."""
    loader: str
    """glibc's."""
    android: str
    """By the NDK."""


PROCESSORS: dict[Abi, Processor] = {
    "arm64-v8a": Processor(machine="aarch64", loader="ld-linux-aarch64.so.1", android="aarch64-linux-android"),
    "x86_64": Processor(machine="x86_64", loader="ld-linux-x86-64.so.2", android="x86_64-linux-android"),
}
"""By Android's name."""
GLIBC_FILES = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1")
"""What ONNX Runtime's library for Linux needs, beside the loader."""
ANDROID_API = 24
"""Android 7, the oldest that ONNX Runtime's archive is for."""
PAGES = "-Wl,-z,max-page-size=16384"
"""Some phones have pages of 16 KiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """One program to compile: some of the agent's C files, and what the compiler is told besides."""

    name: str
    files: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a bundle is made from; `files` lie beside the programs, by their name there."""

    target: Literal["host", "glibc", "bionic"]
    abi: str
    compiler: tuple[str, ...]
    runtime: str
    programs: tuple[Program, ...]
    files: dict[str, Path]


def agent_files() -> tuple[str, ...]:
    """The agent's C files."""
    return tuple(path.name for path in sorted(SOURCES.glob("*.c")) if path.name != LAUNCHER)


# -- this machine ----------------------------------------------------------------------------------------------------------------


def host_recipe(compiler: Sequence[str] = ()) -> Recipe:
    """For this machine.

    Raises:
        BundleError: no compiler, no runtime, or no Linux.
    """
    if sys.platform != "linux":
        raise BundleError("the C agent is for Linux and Android; this machine is measured by the Python agent (--device local)")
    machine = platform.machine()
    return Recipe(
        target="host",
        abi=next((abi for abi, processor in PROCESSORS.items() if processor.machine == machine), machine),
        compiler=tuple(compiler) or _first(os.environ.get("CC"), "gcc", "clang", "cc"),
        runtime=_installed_runtime(),
        programs=(Program(name=ENTRY, files=agent_files(), options=LIBRARIES),),
        files={LIBRARY: installed_library()},
    )


def _first(*names: str | None) -> tuple[str, ...]:
    for name in filter(None, names):
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
        raise BundleError(f"the installed onnxruntime has no {LIBRARY}; its wheels have it from 1.20 on: pip install -U onnxruntime")
    return found[0]


# -- any Linux kernel ------------------------------------------------------------------------------------------------------------


def glibc_recipe(
    abi: Abi, cache: Path, *, compiler: Sequence[str] = (), wheel: Path | None = None, say: Callable[[str], object] = lambda _: None
) -> Recipe:
    """For a phone or board with that processor: needs nothing of it but a Linux kernel. ONNX Runtime is of the version installed here.

    Args:
        cache: where downloads are kept.
        compiler: that of `abi`; "aarch64-linux-gnu-gcc" and the like by default.
        wheel: of ONNX Runtime, for Linux on `abi`; downloaded with pip by default.
        say: is told what takes time.

    Raises:
        BundleError: no such compiler, or no such wheel.
    """
    processor = PROCESSORS[abi]
    if not compiler:
        native = platform.machine() == processor.machine
        name = f"{processor.machine}-linux-gnu-gcc"
        if not native and not shutil.which(name):
            package = f"gcc-{processor.machine.replace('_', '-')}-linux-gnu"
            raise BundleError(f"no {name}: install it (Debian: sudo apt install {package}), or name a compiler with --cc")
        compiler = _first(name, *(("gcc",) if native else ()))
    here = wheel is None and platform.machine() == processor.machine
    library, runtime = (installed_library(), _installed_runtime()) if here else wheel_library(abi, cache, wheel=wheel, say=say)
    launcher = (f'-DLOADER="{processor.loader}"', "-static", PAGES)
    return Recipe(
        target="glibc",
        abi=abi,
        compiler=tuple(compiler),
        runtime=runtime,
        programs=(
            Program(name=ENTRY, files=(LAUNCHER,), options=launcher),
            Program(name="agent-program", files=agent_files(), options=(*LIBRARIES, PAGES)),
        ),
        files={LIBRARY: library} | {name: _compilers_file(compiler, name) for name in (processor.loader, *GLIBC_FILES)},
    )


def _compilers_file(compiler: Sequence[str], name: str) -> Path:
    """A library as the compiler would link it."""
    try:
        done = subprocess.run([*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BundleError(f"{compiler[0]}: {error.strerror}; name a C compiler with --cc") from error
    path = Path(done.stdout.strip())
    if done.returncode != 0 or not path.is_absolute() or not path.is_file():
        wanted = "for arm64: sudo apt install libc6-dev-arm64-cross libstdc++6-arm64-cross"
        raise BundleError(f"{' '.join(compiler)} has no {name} of its processor; Debian's cross compilers come with one ({wanted})")
    return path.resolve()


def wheel_library(abi: Abi, cache: Path, *, wheel: Path | None = None, say: Callable[[str], object] = lambda _: None) -> tuple[Path, str]:
    """ONNX Runtime's C library for Linux on a processor, and its name with the version.

    Raises:
        BundleError: the wheel cannot be had, or is another.
    """
    machine = PROCESSORS[abi].machine
    if wheel is None:
        runtime = _installed_runtime()
        library = cache / "downloads" / f"{runtime.replace(' ', '-')}-{machine}" / LIBRARY
        if not library.is_file():
            say(f"downloading {runtime} for {machine} (25 MB)")
            with tempfile.TemporaryDirectory() as folder:
                _take_out(_download(runtime.split()[1], machine, Path(folder)), f"onnxruntime/capi/{LIBRARY}.", library)
        return library, runtime
    named = re.fullmatch(r"onnxruntime-([^-]+)-.*_(\w+64)\.whl", wheel.name)
    if not named or not wheel.name.endswith(f"_{machine}.whl"):
        raise BundleError(f"{wheel}: no wheel of onnxruntime for Linux on {machine} (onnxruntime-VERSION-...-manylinux_..._{machine}.whl)")
    library = cache / "downloads" / f"onnxruntime-{named[1]}-{machine}" / LIBRARY
    _take_out(wheel, f"onnxruntime/capi/{LIBRARY}.", library)
    return library, f"onnxruntime {named[1]}"


def _download(version: str, machine: str, folder: Path) -> Path:
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (28, 27, 17)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*pip, *platforms, "-d", str(folder), f"onnxruntime=={version}"], capture_output=True, text=True, check=False)
    found = list(folder.glob("onnxruntime-*.whl"))
    if done.returncode != 0 or not found:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1].removeprefix("ERROR: ")
        raise BundleError(
            f"onnxruntime {version} for {machine} cannot be downloaded (pip: {said}); download the wheel and give it with --wheel"
        )
    return found[0]


def _take_out(archive: Path, prefix: str, to: Path) -> None:
    """The file of an archive whose name begins so, renamed into place when it is complete."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=to.parent) as folder:
            name = next((name for name in opened.namelist() if name.startswith(prefix)), None)
            if name is None:
                raise BundleError(f"{archive} holds no {prefix.rstrip('.')}; is it of version 1.20 or newer?")
            part = Path(folder) / to.name
            with opened.open(name) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.replace(part, to)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{archive}: {getattr(error, 'strerror', None) or error}") from error


# -- Android's own C library -----------------------------------------------------------------------------------------------------


def bionic_recipe(abi: Abi, cache: Path, *, ndk: Path, aar: Path) -> Recipe:
    """For Android's C library.

    Args:
        ndk: the folder of Android's NDK.
        aar: ONNX Runtime's Android archive, named onnxruntime-android-VERSION.aar.

    Raises:
        BundleError: either is not what it should be.
    """
    compilers = sorted(ndk.glob(f"toolchains/llvm/prebuilt/*/bin/{PROCESSORS[abi].android}{ANDROID_API}-clang"))
    if not compilers:
        raise BundleError(f"{ndk}: no NDK with a compiler for {abi} and Android API {ANDROID_API}; see developer.android.com/ndk/downloads")
    if not aar.is_file():
        raise BundleError(f"{aar}: no such file; Maven has it: com.microsoft.onnxruntime:onnxruntime-android")
    named = re.fullmatch(r"onnxruntime-\w+-(\d[\w.]*)\.aar", aar.name)
    if not named:
        raise BundleError(f"{aar}: the name does not tell the version; keep it as it came: onnxruntime-android-VERSION.aar")
    library = cache / "downloads" / f"onnxruntime-{named[1]}-android-{abi}" / LIBRARY
    _take_out(aar, f"jni/{abi}/{LIBRARY}", library)
    return Recipe(
        target="bionic",
        abi=abi,
        compiler=(str(compilers[0]),),
        runtime=f"onnxruntime {named[1]}",
        programs=(Program(name=ENTRY, files=agent_files(), options=("-ldl", "-lm", PAGES)),),  # threads are in its libc
        files={LIBRARY: library},
    )
