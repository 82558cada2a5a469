"""A file is there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archsearch.errors import RunError
from archsearch.files import read_json, write_atomic


def test_writes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_atomic(path, "grüße\n")
    assert path.read_bytes() == "grüße\n".encode()
    write_atomic(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"], "nothing temporary stays"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    write_atomic(tmp_path / "file", "x")
    assert (tmp_path / "file").stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(RunError, match=r"file: cannot be written: No space left on device; free some space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "nothing temporary stays"


def test_a_crash_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """No clean-up runs, as with kill -9."""

    path = tmp_path / "file"
    write_atomic(path, "old")

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", "x")


@pytest.mark.parametrize("content", [b'{"a": 1', b"\xff\xfe"])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "search.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"search\.json: is damaged, not JSON .*; remove it"):
        read_json(path)
    write_atomic(path, '{"a": [1, null]}')
    assert read_json(path) == {"a": [1, None]}


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing\.json: cannot be read: No such file"):
        read_json(tmp_path / "nothing.json")
