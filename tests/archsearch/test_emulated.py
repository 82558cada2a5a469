"""Times of emulated devices are kept and marked, and no table, report or search takes them for numbers unless it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import Outcome

from archsearch import emulated
from archsearch import run as stages
from archsearch.compare import load_side
from archsearch.doctor import Diagnosis, examine
from archsearch.emulated import EmulatedTimesError
from archsearch.profile import profile
from archsearch.report.files import RunFiles
from archsearch.report.measured import advice
from archsearch.run import load_table
from archsearch.space import Space
from archsearch.store import Store
from devices.base import DeviceInfo
from tests.archsearch.fake_device import FakeDevice
from tests.archsearch.spaces import small
from tests.archsearch.test_fleet import TOML


class Emulated(FakeDevice):
    @property
    def info(self) -> DeviceInfo:
        return replace(super().info, device_id="adb:EMU", fingerprint="e" * 12, extra={"emulated": True})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    list(profile(Space.from_dict(small()), tmp_path, Emulated()))
    return tmp_path


def test_they_are_kept(run_dir: Path) -> None:
    with Store(run_dir / "measurements.db") as store:
        assert [info["extra"] for info in store.devices()] == [{"emulated": True}]
        assert all(row.status == "done" for row in store.rows())


def test_nothing_takes_them_for_numbers(run_dir: Path) -> None:
    refusals: list[Callable[[], object]] = [
        lambda: load_table(run_dir, "adb:EMU"),
        lambda: load_table(run_dir, "e" * 12),
        lambda: RunFiles(run_dir).infos,
        lambda: load_side(run_dir / "measurements.db", None),
        lambda: list(examine(Emulated(), diagnosis=Diagnosis())),
    ]
    for refused in refusals:
        with pytest.raises(EmulatedTimesError, match=r"^(adb:EMU|e{12}) is emulated: .*archsearch --allow-emulated"):
            refused()
    with emulated.allowed():
        assert load_table(run_dir, "adb:EMU").rows
        assert RunFiles(run_dir).infos
        assert load_side(run_dir / "measurements.db", None).rows
    with pytest.raises(EmulatedTimesError):
        load_table(run_dir, "adb:EMU")


def test_a_report_of_several_devices_leaves_them_out(run_dir: Path) -> None:
    list(profile(Space.from_dict(small()), run_dir, FakeDevice()))
    files = RunFiles(run_dir)
    assert [info["device_id"] for info in files.infos] == ["local"]
    assert {row.fingerprint for row in files.rows} == {"f" * 12}
    assert list(files.tables) == ["local"]


def test_a_run_of_all_stages_stops_before_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "space.toml").write_text(TOML)
    monkeypatch.setattr(stages, "open_device", lambda name: Emulated())
    with pytest.raises(EmulatedTimesError, match="adb:EMU is emulated"):
        next(stages.run(tmp_path / "space.toml", tmp_path / "run", ["adb:EMU"], outcome=stages.RunOutcome()))
    assert not (tmp_path / "run").exists()


def test_a_report_that_takes_them_says_so(run_dir: Path) -> None:
    (run_dir / "space.toml").write_text(TOML)
    with emulated.allowed():
        assert advice(RunFiles(run_dir)) == ("adb:EMU is emulated: its times say nothing about a phone.",)


def test_a_merged_file_still_knows(run_dir: Path, tmp_path: Path) -> None:
    with Store(tmp_path / "all" / "measurements.db") as store:
        store.merge([run_dir / "measurements.db"])
    with pytest.raises(EmulatedTimesError):
        load_table(tmp_path / "all", "adb:EMU")


def test_at_the_command_line(run_dir: Path, call: Callable[..., Outcome]) -> None:
    spec = run_dir / "spec.toml"
    spec.write_text(SPEC)
    refused = call("predict", spec, "--run", run_dir, "--device", "adb:EMU")
    assert refused.status == 2
    assert "adb:EMU is emulated" in refused.err
    taken = call("--allow-emulated", "predict", spec, "--run", run_dir, "--device", "adb:EMU")
    assert taken.status == 0
    assert call("predict", spec, "--run", run_dir, "--device", "adb:EMU").status == 2, "the flag outlives its command"


SPEC = """
name = "two"
hidden_size = 64
vocab_size = 512

[[layers]]
operator = { kind = "short_conv", kernel_size = 3 }
ffn = { intermediate_size = 96 }

[[layers]]
operator = { kind = "gqa", heads = 4, kv_heads = 2, head_dim = 16 }
ffn = { intermediate_size = 96 }
"""
