"""Operators of other packages, found through real entry points: the example in full, and packages that are broken."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from operators.kinds import operator_for, operator_kinds
from operators.specs import OperatorError, UnknownOperatorError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "third_party_operator"


def install(site: Path, name: str, entry_points: dict[str, str]) -> None:
    """What an installer writes so that `importlib.metadata` finds a package."""
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [f"{key} = {value}" for key, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[archsearch.operators]", *lines, ""]))


@pytest.mark.slow
def test_the_example_passes_both_contracts(tmp_path):
    """In a process of its own, since the registry is read once."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install(tmp_path, project["name"], project["entry-points"]["archsearch.operators"])
    for module in EXAMPLE.glob("*.py"):
        (tmp_path / module.name).symlink_to(module)
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_token_shift.py"), *options]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_guide_shows_the_example_as_it_is():
    """Every block of code in the guide stands in the example, line by line."""
    guide = (ROOT / "docs" / "add-an-operator.md").read_text()
    sources = {" ".join(file.read_text().split()) for file in EXAMPLE.iterdir() if file.is_file()}
    blocks = [part.split("\n", 1) for part in guide.split("```")[1::2]]
    shown = [code for language, code in blocks if language in ("python", "toml")]
    assert len(shown) >= 5
    for code in shown:
        assert any(" ".join(code.split()) in source for source in sources), code


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where packages are found, and a registry that is read anew before and after."""
    monkeypatch.syspath_prepend(tmp_path)
    operator_kinds.cache_clear()
    yield tmp_path
    operator_kinds.cache_clear()


def test_an_installed_operator_is_known_beside_ours(site, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE)
    install(site, "archsearch-token-shift", {"token_shift": "token_shift:TokenShift"})
    assert list(operator_kinds()) == ["short_conv", "swa", "gla", "gqa", "token_shift"]
    assert operator_for("token_shift").family == "shift"
    with pytest.raises(UnknownOperatorError, match="known: short_conv, swa, gla, gqa, token_shift"):
        operator_for("mamba3")


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("raise ImportError('no such library')", "entry point mine = broken:thing does not load: no such library"),
        ("other = 1", "entry point mine = broken:thing does not load: module 'broken' has no attribute 'thing'"),
        ("thing = 1", r"entry point mine = broken:thing is not an operators\.Operator"),
        ("from operators.builtin import Gla as thing", "entry point mine = broken:thing: the kind 'gla' is already taken"),
    ],
    ids=["import fails", "nothing there", "no operator", "kind taken"],
)
def test_a_broken_package_is_named(site, monkeypatch, code, problem):
    install(site, "broken-operator", {"mine": "broken:thing"})
    (site / "broken.py").write_text(code)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(OperatorError, match=problem):
        operator_kinds()
