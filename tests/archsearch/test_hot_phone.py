"""A phone that stays too hot is measured all the same, and nobody who reads the results can miss it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from archsearch.report.files import RunFiles
from archsearch.report.measured import series
from devices.adb import device as phone_device
from tests.archsearch.test_fleet import TOML
from tests.phone.phone import FakePhone


def flags(run_dir: Path) -> list[tuple[str, ...]]:
    """Of every process, as the report has them."""
    return [row.flags for row in series(RunFiles(run_dir))]


@pytest.mark.slow
def test_table_json_and_report_say_that_it_was_hot(
    phone: FakePhone, agent_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(phone_device, "COOLING_LIMIT_S", 0.2)
    space = tmp_path / "space.toml"
    space.write_text(TOML)
    device = f"adb:{phone.address}"
    # 80 degrees: too hot for a phone, as the host alone sees it, and not yet for a laptop.
    zone, service = phone.sys / "class/thermal/thermal_zone0/type", phone.system / "dumpsys/thermalservice"
    zone.write_text("modem\n")
    service.write_text(service.read_text().replace("mValue=41.2", "mValue=80.0"))
    hot = call("profile", space, "--run", tmp_path / "hot", "--device", device)
    assert hot.status == 0, hot.err
    assert f"{device}: flagged: " in hot.err
    assert "profile into another --run" in " ".join(hot.err.split())
    again = call("profile", space, "--run", tmp_path / "hot", "--device", device, "--json")
    assert again.document["flagged"][device] > 0
    assert flags(tmp_path / "hot")
    assert all("hot" in found for found in flags(tmp_path / "hot"))
    service.write_text(service.read_text().replace("mValue=80.0", "mValue=41.2"))
    cool = call("profile", space, "--run", tmp_path / "cool", "--device", device, "--json")
    assert cool.document["flagged"] == {device: 0}
    assert "flagged" not in cool.err
    assert not any("hot" in found for found in flags(tmp_path / "cool"))
