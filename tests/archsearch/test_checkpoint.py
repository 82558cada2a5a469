"""A crash at any moment of a save leaves a whole checkpoint; a damaged one is told by file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from archsearch import checkpoint
from archsearch.checkpoint import COMPLETE, INCOMING, MANIFEST, Checkpoint, is_checkpoint, save_checkpoint
from archsearch.data import train_tokenizer
from archsearch.errors import CheckpointError, RunError
from archsearch.spec import ArchSpec

TOKENIZER_JSON = train_tokenizer(["some text"], 257).to_json()


def writer(value: float) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"x": np.full(3, value, dtype=np.float32)}, folder / "model.safetensors")
        (folder / "tokenizer.json").write_text(TOKENIZER_JSON)
        (folder / "trainer.json").write_text(json.dumps({"value": value}))

    return write


def content(path: Path) -> tuple[int, float, float]:
    """(step, value in the weights, value in the trainer's state)"""
    opened = Checkpoint.open(path)
    opened.tokenizer()
    return opened.step, float(opened.weights()["x"][0]), json.loads(opened.file("trainer.json").read_text())["value"]


def test_what_was_saved_is_read(tmp_path: Path, tiny_spec: ArchSpec) -> None:
    out = tmp_path / "out"
    assert not is_checkpoint(out)
    save_checkpoint(out, tiny_spec, 7, writer(1.0))
    assert is_checkpoint(out)
    assert content(out) == (7, 1.0, 1.0)
    opened = Checkpoint.open(out)
    assert opened.spec == tiny_spec
    assert opened.tokenizer().encode("abc") == train_tokenizer(["some text"], 257).encode("abc")
    assert {file.name for file in out.iterdir()} == {"checkpoint.json", "model.safetensors", "spec.toml", "tokenizer.json", "trainer.json"}
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1, "all files as readable as each other"


class Crash(BaseException):
    """Not an `Exception`: no clean-up runs, as with kill -9 or a power cut."""


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """Make the n-th call that changes the disk crash, before it is done."""

    def arm(n: int) -> list[str]:
        calls: list[str] = []

        def wrap(owner: Any, name: str) -> None:
            original = getattr(owner, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                if len(calls) == n:
                    raise Crash(name)
                return original(*args, **kwargs)

            monkeypatch.setattr(owner, name, wrapped)

        for owner, name in (
            *((Path, name) for name in ("rename", "replace", "mkdir", "rmdir", "write_text", "chmod")),
            *((os, name) for name in ("fsync", "replace")),
            (shutil, "rmtree"),
        ):
            wrap(owner, name)
        return calls

    yield arm
    monkeypatch.undo()


def test_a_crash_at_any_call_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, tiny_spec: ArchSpec, crash_at: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for n in range(1, 200):
        out = tmp_path / str(n)
        save_checkpoint(out, tiny_spec, 1, writer(1.0))
        calls = crash_at(n)
        try:
            save_checkpoint(out, tiny_spec, 2, writer(2.0))
            crashed = False
        except Crash:
            crashed = True
        finally:
            monkeypatch.undo()
        found = content(out)
        assert found in {(1, 1.0, 1.0), (2, 2.0, 2.0)}, calls[-1]
        seen.add(found[0])
        save_checkpoint(out, tiny_spec, 3, writer(3.0))  # whatever was left behind does not stand in the way
        assert content(out) == (3, 3.0, 3.0)
        assert not (out / INCOMING).exists()
        assert not (out / COMPLETE).exists()
        if not crashed:
            break
    else:
        pytest.fail("the save never came to its end")
    assert n > 20, "every call of a save was cut once"
    assert seen == {1, 2}


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, tiny_spec: ArchSpec) -> None:
    save_checkpoint(tmp_path, tiny_spec, 1, writer(1.0))

    def full(folder: Path) -> None:
        writer(2.0)(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"checkpoint of step 2 cannot be written: No space left on device; free some space"):
        save_checkpoint(tmp_path, tiny_spec, 2, full)
    assert content(tmp_path) == (1, 1.0, 1.0)
    assert not (tmp_path / INCOMING).exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("name", ["model.safetensors", "spec.toml", "tokenizer.json", "trainer.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip, "is damaged"), (truncate, r"bytes, \d+ were saved"), (Path.unlink, "is missing")],
    ids=["flipped bit", "cut off", "gone"],
)
def test_damage_is_told_by_file(tmp_path: Path, tiny_spec: ArchSpec, name: str, damage: Callable[[Path], None], message: str) -> None:
    save_checkpoint(tmp_path, tiny_spec, 1, writer(1.0))
    damage(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: .*{message}.*train again into another --out") as info:
        content(tmp_path)
    assert "\n" not in str(info.value)
    assert info.value.exit_code == 1


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 99}', "has format 99, this version reads 1; update archsearch"),
    ],
)
def test_a_bad_manifest(tmp_path: Path, tiny_spec: ArchSpec, manifest: str, message: str) -> None:
    save_checkpoint(tmp_path, tiny_spec, 1, writer(1.0))
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=rf"{MANIFEST}: {message}"):
        Checkpoint.open(tmp_path)


def test_a_place_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file"):
        Checkpoint.open(tmp_path / "file")


def test_a_manifest_of_another_spec_is_refused(tmp_path: Path, tiny_spec: ArchSpec) -> None:
    save_checkpoint(tmp_path, tiny_spec, 1, writer(1.0))
    data = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(data | {"spec_id": "0" * 12}))
    with pytest.raises(CheckpointError, match=r"spec\.toml: is .*, the weights belong to 000000000000"):
        Checkpoint.open(tmp_path)


def test_no_torch_is_needed_to_read_one() -> None:
    import subprocess
    import sys

    code = "import sys; import archsearch.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "torch" not in vars(checkpoint)
