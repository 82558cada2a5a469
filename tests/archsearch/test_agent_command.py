"""`archsearch agent build`: what it prints, where it keeps it, and what it says to those who lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import command_line
import pytest
from command_line import run_command

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here (Debian: gcc)")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.setitem(command_line.ENVIRONMENT, name, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_it_builds_once_and_says_where(cache: Path) -> None:
    first = run_command("agent", "build")
    assert (first.status, "compiling the agent for" in first.err) == (0, True)
    again = run_command("agent", "build", "--json")
    assert (again.status, again.err) == (0, "")
    bundle = Path(again.document["bundle"])
    assert set(again.document) == {"bundle", "target", "abi", "agent", "runtime", "source_sha256", "compiler", "bytes", "files"}
    assert first.out.splitlines()[-1] == str(bundle)
    assert bundle.is_relative_to(cache)
    said = subprocess.run([bundle / "agent", "--version"], capture_output=True, text=True, check=True, env=os.environ).stdout
    assert said == f"{again.document['agent']} {again.document['runtime']} CPUExecutionProvider\n"
    assert again.document["bytes"] == sum(file.stat().st_size for file in bundle.iterdir() if file.name != "manifest.json")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--ndk", "."], 2, "--ndk and --ort-aar go together"),
        (["--ort-aar", "x.aar"], 2, "--ndk and --ort-aar go together"),
        (["--wheel", "x.whl"], 2, "--wheel goes with --abi"),
        (["--ndk", ".", "--ort-aar", "x.aar", "--cc", "gcc"], 2, "--cc does not go with --ndk"),
        (["--ndk", "nowhere", "--ort-aar", "x.aar"], 1, "nowhere: no NDK with a compiler for arm64-v8a"),
        (["--abi", "x86_64", "--wheel", "x.whl"], 1, "no wheel of onnxruntime for Linux on x86_64"),
        (["--cc", "no-such-compiler"], 1, "no-such-compiler: No such file or directory; name a C compiler with --cc"),
        (["--cc", "gcc '"], 2, "--cc: No closing quotation"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], status: int, said: str, cache: Path) -> None:
    ended = run_command("agent", "build", *arguments)
    assert ended.status == status
    assert said in ended.error
    assert not list(cache.glob("archsearch/agents/*-*"))


def test_an_unknown_processor_is_wrong_usage() -> None:
    ended = run_command("agent", "build", "--abi", "mips")
    assert ended.status == 2
    assert "arm64-v8a" in ended.err
