"""Agent bundles: built once, kept whole, refused with a reason; one with its own C library runs where there is nothing but a kernel."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from devices import build, recipes
from devices.bundle import ENTRY, LIBRARY, MANIFEST, Bundle, BundleError, file_sha256
from devices.local import LocalDevice
from devices.plan import OutputsResult, RoundResult, RunPlan, Started
from devices.recipes import GLIBC_FILES, PROCESSORS, Program, Recipe, bionic_recipe, glibc_recipe, host_recipe, wheel_library
from tests.contracts import agent_models as models
from tests.contracts.agent_suite import SHORT, agents, events, failures
from tests.devices.c_agent import c_bundle, glibc_bundle

GCC = shutil.which("gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="no gcc here (Debian: gcc)")


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    """A recipe whose library is no real one, so that it is quickly made and soon broken."""
    (tmp_path / "library").write_text("one")
    programs = (Program(name=ENTRY, files=("sha256.c",), options=("-c",)),)
    return Recipe(
        target="host", abi="x86_64", compiler=("gcc",), runtime="none 1", programs=programs, files={LIBRARY: tmp_path / "library"}
    )


# -- building and keeping ------------------------------------------------------------------------------------------------------


def test_a_bundle_is_built_once(small: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    first = build.build(small, cache=tmp_path / "cache", say=said.append)
    made = first.entry.stat().st_mtime_ns
    assert build.build(small, cache=tmp_path / "cache", say=said.append) == first
    assert first.entry.stat().st_mtime_ns == made
    assert len(said) == 1
    assert said[0].startswith("compiling the agent for x86_64 with gcc")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.folder.name], "something was left behind"


def test_the_manifest_tells_what_is_in_it(small: Recipe, tmp_path: Path) -> None:
    bundle = build.build(small, cache=tmp_path / "cache")
    manifest = json.loads((bundle.folder / MANIFEST).read_text())
    assert manifest["files"] == {name: file_sha256(bundle.folder / name) for name in (ENTRY, LIBRARY)}
    assert (manifest["target"], manifest["abi"], manifest["runtime"]) == ("host", "x86_64", "none 1")
    assert (manifest["agent"], manifest["source_sha256"]) == ("c-1", build.source_sha256())
    assert Bundle.read(bundle.folder) == bundle


@pytest.mark.parametrize("what", ["library", "program", "runtime", "flags"])
def test_whatever_goes_in_makes_another_bundle(what: str, small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build(small, cache=tmp_path / "cache")
    match what:
        case "library":
            (tmp_path / "library").write_text("two")
        case "program":
            small = replace(small, programs=(replace(small.programs[0], options=("-c", "-g")),))
        case "runtime":
            small = replace(small, runtime="none 2")
        case "flags":
            monkeypatch.setattr(build, "FLAGS", ("-O1",))
    assert build.build(small, cache=tmp_path / "cache").folder != first.folder


def test_a_damaged_bundle_is_noticed_and_built_anew(small: Recipe, tmp_path: Path) -> None:
    bundle = build.build(small, cache=tmp_path / "cache")
    for damage in (lambda path: path.write_text("other"), Path.unlink):
        damage(bundle.folder / LIBRARY)
        with pytest.raises(BundleError, match=rf"{LIBRARY} is not what manifest\.json says"):
            bundle.check()
        build.build(small, cache=tmp_path / "cache").check()
    (bundle.folder / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="no agent bundle"):
        Bundle.read(bundle.folder)
    build.build(small, cache=tmp_path / "cache").check()


def test_force_builds_it_again(small: Recipe, tmp_path: Path) -> None:
    bundle = build.build(small, cache=tmp_path / "cache")
    inode = bundle.entry.stat().st_ino
    again = build.build(small, cache=tmp_path / "cache", force=True)
    assert again == bundle
    assert bundle.entry.stat().st_ino != inode


def test_what_a_compiler_says_is_passed_on(small: Recipe, tmp_path: Path) -> None:
    wrong = replace(small, programs=(replace(small.programs[0], options=("-c", "-DK=1+")),))
    with pytest.raises(BundleError, match=r"gcc cannot compile the agent: .*error: expected identifier"):
        build.build(wrong, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(BundleError, match=r"no-such-cc: No such file or directory; name a C compiler with --cc"):
        build.build(replace(small, compiler=("no-such-cc",)), cache=tmp_path / "cache")
    with pytest.raises(BundleError, match=r"false is no C compiler that works"):
        build.build(replace(small, compiler=("false",)), cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"file.*cannot be kept there"):
        build.build(small, cache=tmp_path / "file")


def test_the_sources_travel_with_the_package() -> None:
    assert {"agent.c", "main.c", "ort.h", "launcher.c"} <= {path.name for path in recipes.SOURCES.iterdir()}
    assert recipes.SOURCES.parent.name == "devices", "the wheel has all that lies in the package's folder"


# -- what is missing -----------------------------------------------------------------------------------------------------------


@contextmanager
def nothing_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nowhere")
        patch.delenv("CC", raising=False)
        yield


def test_without_a_compiler_it_says_which_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with nothing_on_path(monkeypatch):
        with pytest.raises(BundleError, match="no C compiler: install one"):
            host_recipe()
        other: recipes.Abi = "arm64-v8a" if platform.machine() == "x86_64" else "x86_64"
        package = "gcc-" + PROCESSORS[other].machine.replace("_", "-") + "-linux-gnu"
        with pytest.raises(BundleError, match=rf"install it \(Debian: sudo apt install {package}\)"):
            glibc_recipe(other, tmp_path)


def test_a_compiler_without_libraries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no ld-linux.* of its processor"):
        glibc_recipe("arm64-v8a" if platform.machine() == "x86_64" else "x86_64", tmp_path, compiler=("gcc",), wheel=_wheel(tmp_path))


def _wheel(folder: Path, name: str = "onnxruntime-1.99.0-cp311-cp311-manylinux_2_28_{machine}.whl") -> Path:
    machine = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    path = folder / name.format(machine=machine)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("onnxruntime/capi/libonnxruntime.so.1.99.0", "a library")
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", "another")
    return path


def test_the_runtime_comes_out_of_a_wheel(tmp_path: Path) -> None:
    abi: recipes.Abi = "arm64-v8a" if platform.machine() == "x86_64" else "x86_64"
    library, runtime = wheel_library(abi, tmp_path / "cache", wheel=_wheel(tmp_path))
    assert (library.read_text(), runtime) == ("a library", "onnxruntime 1.99.0")
    for name in ("numpy-1.99.0-cp311-cp311-manylinux_2_28_{machine}.whl", "onnxruntime-1.99.0-cp311-cp311-win_amd64.whl"):
        with pytest.raises(BundleError, match="no wheel of onnxruntime for Linux on"):
            wheel_library(abi, tmp_path / "cache", wheel=_wheel(tmp_path, name))
    broken = _wheel(tmp_path, "onnxruntime-1.98.0-cp311-cp311-manylinux_2_28_{machine}.whl")
    broken.write_bytes(b"half a wheel")
    with pytest.raises(BundleError, match="not a zip file"):
        wheel_library(abi, tmp_path / "cache", wheel=broken)
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("README", "nothing")
    with pytest.raises(BundleError, match=r"holds no onnxruntime/capi/libonnxruntime\.so"):
        wheel_library(abi, tmp_path / "cache", wheel=broken)
    with pytest.raises(BundleError, match="No such file"):
        wheel_library(abi, tmp_path / "cache", wheel=tmp_path / broken.name.replace("98", "97"))
    assert sorted(path.name for path in (tmp_path / "cache" / "downloads").rglob("*") if path.is_file()) == [LIBRARY]


def test_a_wheel_that_cannot_be_downloaded_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "runtime_name", lambda: "onnxruntime 0.0.1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(BundleError, match=r"onnxruntime 0\.0\.1 for aarch64 cannot be downloaded .*--wheel"):
        wheel_library("arm64-v8a", tmp_path)


# -- Android's C library: the arguments, and how a bundle is put together; no NDK is here to try ---------------------------------


@pytest.fixture
def ndk(tmp_path: Path) -> Path:
    """A folder laid out as the NDK's, whose compiler is this machine's."""
    compiler = tmp_path / "ndk" / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin" / "aarch64-linux-android24-clang"
    compiler.parent.mkdir(parents=True)
    compiler.write_text('#!/bin/sh\nexec gcc "$@"\n')
    compiler.chmod(0o755)
    return tmp_path / "ndk"


def test_a_bundle_for_android_needs_ndk_and_archive(tmp_path: Path, ndk: Path) -> None:
    aar = _wheel(tmp_path, "onnxruntime-android-1.29.0.aar")
    with pytest.raises(BundleError, match=r"no NDK with a compiler for arm64-v8a"):
        bionic_recipe("arm64-v8a", tmp_path, ndk=tmp_path, aar=aar)
    with pytest.raises(BundleError, match=r"no NDK with a compiler for x86_64"):
        bionic_recipe("x86_64", tmp_path, ndk=ndk, aar=aar)
    with pytest.raises(BundleError, match=r"missing\.aar: no such file; Maven has it"):
        bionic_recipe("arm64-v8a", tmp_path, ndk=ndk, aar=tmp_path / "missing.aar")
    with pytest.raises(BundleError, match="does not tell the version"):
        bionic_recipe("arm64-v8a", tmp_path, ndk=ndk, aar=_wheel(tmp_path, "onnxruntime.aar"))
    bundle = build.build(bionic_recipe("arm64-v8a", tmp_path, ndk=ndk, aar=aar), cache=tmp_path / "cache")
    assert (bundle.target, bundle.abi, bundle.runtime, sorted(bundle.files)) == (
        "bionic",
        "arm64-v8a",
        "onnxruntime 1.29.0",
        [ENTRY, LIBRARY],
    )
    assert (bundle.folder / LIBRARY).read_text() == "another"


# -- with its own C library ----------------------------------------------------------------------------------------------------


def test_a_bundle_with_its_own_c_library_runs_from_anywhere(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("is tried on x86-64")
    bundle = glibc_bundle("x86_64")
    assert set(bundle.files) == {ENTRY, "agent-program", LIBRARY, PROCESSORS["x86_64"].loader, *GLIBC_FILES}
    elsewhere = tmp_path / "a folder"
    shutil.copytree(bundle.folder, elsewhere)
    done = subprocess.run(["./agent", "--version"], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert done.stdout == f"{bundle.agent} {bundle.runtime} CPUExecutionProvider\n"
    run = LocalDevice((str(elsewhere / ENTRY),)).run(
        RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1000, max_wait_s=0.0)
    )
    found = [next(run), next(run)]
    (agent,) = agents()
    mapped = {Path(entry.path) for entry in agent.memory_maps() if ".so" in entry.path}
    run.close()  # type: ignore[attr-defined]
    assert mapped
    assert {path.parent for path in mapped} == {elsewhere}, "it uses a library of this machine"
    assert isinstance(found[0], Started)
    assert "emulated" not in found[0].conditions.extra


def test_the_same_bits_on_an_emulated_arm(tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("is tried on x86-64")
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("no qemu-aarch64 here (Debian: qemu-user-static)")
    bundle = glibc_bundle("arm64-v8a")
    # ONNX Runtime asks /proc/cpuinfo what the CPU can do; old qemu shows it this machine's. Files below -L come first.
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"{CPUINFO.format(core=0)}{CPUINFO.format(core=1)}")
    loader = bundle.folder / PROCESSORS["arm64-v8a"].loader
    command = (qemu, "-L", str(tmp_path), str(loader), "--library-path", str(bundle.folder), str(bundle.folder / "agent-program"))
    recurrent = models.recurrent(tmp_path)
    cases = (
        models.recurrent_case(recurrent, "swapped", shared=False),
        models.recurrent_case(recurrent, "in place", shared=True),
        models.growing_case(models.growing(tmp_path)),
    )
    # Sums and products of a few numbers are the same on every CPU; what a matrix product rounds to is not.
    found = events(LocalDevice(command), RunPlan(cases=cases, purpose="outputs", min_runs=3, seed=5))
    computed = {event.case_id: event.sha256 for event in found if isinstance(event, OutputsResult)}
    assert not failures(found)
    assert computed["swapped"] == models.expected(cases[0], 3, seed=5)
    assert computed["in place"] == models.expected(cases[1], 3, seed=5)
    assert computed["growing"]["s_new"] == models.expected(cases[2], 3, seed=5)["s_new"]
    found = events(LocalDevice(command), RunPlan(cases=(models.plain_case(models.plain(tmp_path)),), rounds=1, **SHORT))
    (started,) = (event for event in found if isinstance(event, Started))
    assert started.conditions.extra["emulated"] is True, "its times must not be taken for a phone's"
    assert sum(isinstance(event, RoundResult) for event in found) == 1


CPUINFO = """processor : {core}
Features : fp asimd
CPU implementer : 0x41
CPU architecture: 8
CPU variant : 0x0
CPU part : 0xd03
CPU revision : 4

"""


# -- as its user ---------------------------------------------------------------------------------------------------------------


def test_one_bundle_serves_everybody(tmp_path: Path) -> None:
    # Any user may read and run what another has built.
    for path in [c_bundle().entry, c_bundle().folder / LIBRARY]:
        assert os.stat(path).st_mode & 0o055 == 0o055


def test_the_phones_bundle_is_found_in_the_cache(small: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(build, "cache_folder", lambda: cache)
    monkeypatch.delenv("ARCHSEARCH_AGENT", raising=False)
    build.build(small)
    with pytest.raises(BundleError, match=r"build one with `archsearch agent build --abi x86_64`"):
        build.find_bundle(("x86_64",))  # that for this machine lacks a C library
    with pytest.raises(BundleError, match=r"there are agents for arm64-v8a and x86_64"):
        build.find_bundle(("armeabi-v7a",))
    glibc = build.build(replace(small, target="glibc"))
    assert build.find_bundle(("x86_64", "arm64-v8a")).folder == glibc.folder
    newer = build.build(replace(small, target="glibc", runtime=str(build.runtime_name())))
    os.utime(glibc.entry)
    assert build.find_bundle(("x86_64",)).folder == newer.folder, "the runtime of this machine comes before the newest bundle"
    bionic = build.build(replace(small, target="bionic"))
    assert build.find_bundle(("x86_64",)).folder == bionic.folder
    (bionic.folder / ENTRY).write_text("damaged")
    assert build.find_bundle(("x86_64",)).folder == newer.folder
    monkeypatch.setattr(build, "source_sha256", lambda: "other sources")
    with pytest.raises(BundleError, match="build one with"):
        build.find_bundle(("x86_64",))
