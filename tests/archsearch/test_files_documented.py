"""docs/files.md names every key, default and column, and its examples work."""

from __future__ import annotations

import json
import re
import sqlite3
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from archsearch.schema import TABLES
from archsearch.space import Space, _SpaceFile
from archsearch.spec import ArchSpec, _SpecFile
from archsearch.store import Store
from operators.builtin import BUILTIN

TEXT = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
SPEC, SPACE, RUN, DATABASE, DOCUMENTS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
TABLES_OF_SPACE = {name: field.annotation for name, field in _SpaceFile.model_fields.items()}


def rows(section: str) -> dict[str, list[str]]:
    """The cells of each table row by each key that its first cell names."""
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells)
    return found


def settings() -> list[tuple[str, str, Any]]:
    """(table, key, default) of everything in a space file that has a fixed set of keys."""
    return [
        (table, key, field)
        for table, model in TABLES_OF_SPACE.items()
        if isinstance(model, type) and issubclass(model, BaseModel)
        for key, field in model.model_fields.items()
    ]


@pytest.mark.parametrize("table", TABLES_OF_SPACE)
def test_every_table_of_a_space_is_named(table: str) -> None:
    assert f"`[{table}]`" in SPACE or f"`[[{table}]]`" in SPACE


@pytest.mark.parametrize(("table", "key", "field"), settings(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_of_a_space_is_named_with_its_default(table: str, key: str, field: Any) -> None:
    section = SPACE.partition(f"**`[{table}]`**")[2].partition("**`[")[0]
    described = rows(section).get(key)
    assert described is not None, f"[{table}] {key} is not in docs/files.md"
    shown = described[2]
    if shown == "as in a spec":
        assert field.default == _SpecFile.model_fields[key].default
    elif field.is_required():
        assert shown == "required"
    elif field.default is None:
        assert shown == "none"
    elif field.default == []:
        assert shown == "empty"
    else:
        default = field.default[0] if isinstance(field.default, list) else field.default
        assert json.loads(shown) == default


def test_every_key_of_a_spec_is_named_with_its_default() -> None:
    for key, field in _SpecFile.model_fields.items():
        shown = rows(SPEC)[key][2]
        if field.is_required():
            assert shown == "required", key
        elif field.default == {}:
            assert shown == "empty", key
        else:
            assert json.loads(shown) == field.default, key


@pytest.mark.parametrize("operator", BUILTIN, ids=lambda operator: operator.spec_type.kind)
def test_every_key_of_an_operator_is_named(operator: Any) -> None:
    cell = rows(SPEC)[operator.spec_type.kind][1]
    assert re.findall(r"`(\w+)`", cell) == [field.name for field in fields(operator.spec_type)]
    defaults = {field.name: field.default for field in fields(operator.spec_type) if isinstance(field.default, int | float)}
    assert {name: json.loads(value) for name, value in re.findall(r"`(\w+)` \(([^)]*)\)", cell)} == defaults


def test_every_column_of_the_database_is_named(tmp_path: Path) -> None:
    with Store(tmp_path / "measurements.db"):
        db = sqlite3.connect(tmp_path / "measurements.db")
        columns = {table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in TABLES}
        db.close()
    for table, names in columns.items():
        described = " ".join(rows(DATABASE)[table])
        for name in names:
            assert f"`{name}`" in described, f"{table}.{name}"


def test_the_examples_are_valid() -> None:
    spec, space = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(ArchSpec.from_dict(tomllib.loads(spec)).layers) == 2
    assert len(Space.from_dict(tomllib.loads(space)).blocks) == 8


def test_the_snippet_reads_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from archsearch.workload import Workload
    from devices.plan import MachineState, RoundResult

    state = MachineState(time_unix_s=0.0)
    with Store(tmp_path / "runs" / "demo" / "measurements.db") as store:
        store.plan(
            "k",
            fingerprint="f",
            subject_id="s",
            subject={"kind": "block", "label": "conv3/64"},
            copies=4,
            purpose="latency",
            workload=Workload(phase="decode", tokens=1, context=64),
            runtime="r",
            planned=1,
        )
        store.add_round("k", "s", 0, RoundResult(case_id="k", round=0, wall_ns=(8000, 4000, 90000), cpu_ns=None, before=state, after=state))
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    scope["db"].close()
    assert capsys.readouterr().out == "conv3/64 2.0 µs\n"
