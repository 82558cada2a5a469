"""Phones on USB without a server: adb-shell's transport over a made-up cable, whose other end is a real adbd."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("usb1", reason="no libusb here (pip install 'archsearch[usb]', Debian: libusb-1.0-0)", exc_type=Exception)

import usb1
from adb_shell.transport.usb_transport import UsbTransport

from devices import list_devices, open_device
from devices.adb.direct import DirectLink
from devices.adb.errors import LinkLostError, NotAttachedError, OfflineError, UnauthorizedError, UsbBusyError, UsbRightsError
from devices.adb.links import connect
from devices.adb.shell import check, run, running
from devices.adb.sync import push
from tests.contracts.agent_suite import events, rounds
from tests.devices.test_phone import short
from tests.devices.test_phone_link import public_pem
from tests.devices.usb_cable import PACKET_BYTES, Cable
from tests.phone.phone import FakePhone

Bus = Callable[..., None]


@pytest.fixture
def bus(lonely: None, monkeypatch: pytest.MonkeyPatch) -> Bus:
    """Makes these phones hang on USB."""

    def hang(*cables: Cable) -> None:
        monkeypatch.setattr(UsbTransport.USB1_CTX, "getDeviceIterator", lambda skip_on_error: iter(cables), raising=False)

    hang()
    return hang


@pytest.fixture
def cable(phone: FakePhone, bus: Bus) -> Iterator[Cable]:
    found = Cable("R58N30", ("127.0.0.1", phone.port))
    bus(found)
    yield found
    found.close()


def test_a_command(cable: Cable) -> None:
    link = connect("adb:R58N30")
    assert isinstance(link, DirectLink)
    done = run(link, "echo out; echo err >&2; exit 3")
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with running(link, "sleep 1; echo late") as process:
        with pytest.raises(TimeoutError):
            process.read_line(0.2)
        assert process.read_line(10) == "late"
    link.close()


@pytest.mark.parametrize("size", [0, 1, 3 * PACKET_BYTES - 8, 100 * PACKET_BYTES - 8, 2_000_003])
def test_what_is_pushed_arrives(cable: Cable, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(os.urandom(size))
    link = connect("adb:R58N30")
    push(link, tmp_path / "file", "/data/local/tmp/file")
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert check(link, "sha256sum </data/local/tmp/file", "reading").split()[0] == digest
    link.close()


def test_a_message_that_fills_its_last_packet_is_ended_by_an_empty_one(cable: Cable) -> None:
    link = connect("adb:R58N30")
    empty = cable.empty_packets
    service = "shell,v2,raw:echo in; : " + "x" * (2 * PACKET_BYTES)
    run(link, service.removeprefix("shell,v2,raw:")[: 2 * PACKET_BYTES - len("shell,v2,raw:\0")])
    assert cable.empty_packets == empty + 1
    assert run(link, "echo fine").stdout == "fine\n"
    assert cable.empty_packets == empty + 1, "and no other by one"
    link.close()


def test_what_a_slow_phone_takes_in_parts_arrives_whole(cable: Cable, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(300_000))
    link = connect("adb:R58N30")
    cable.takes = 50 * PACKET_BYTES
    push(link, tmp_path / "file", "/data/local/tmp/file")
    assert cable.takes is None
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert check(link, "sha256sum </data/local/tmp/file", "reading").split()[0] == digest
    link.close()


def test_a_plan(cable: Cable, agent_bundle: Path, tmp_path: Path) -> None:
    found = events(open_device("adb:R58N30"), short(tmp_path, "a", "b", rounds=2))
    assert rounds(found) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_devices_lists_it(cable: Cable, agent_bundle: Path, bus: Bus) -> None:
    closed = Cable("", None)
    closed.refuses = usb1.USBErrorAccess()
    bus(closed, cable)
    _, nameless, phone = list_devices()
    assert (phone.device_id, phone.name, phone.available) == ("adb:R58N30", "archsearch Test Phone", True)
    assert not nameless.available
    assert "may not open its USB device" in (nameless.problem or "")


def test_it_is_unplugged(cable: Cable) -> None:
    link = connect("adb:R58N30")
    with running(link, "echo begun; sleep 100") as process:
        assert process.read_line(10) == "begun"
        timer = threading.Timer(0.3, cable.unplug)
        timer.start()
        with pytest.raises(LinkLostError, match=r"^adb:R58N30: the connection broke \(it was unplugged\): replug it"):
            process.read_line(60)
        timer.join()
    with pytest.raises((OfflineError, NotAttachedError), match="replug"):
        connect("adb:R58N30")


def test_what_stands_in_the_way(cable: Cable, bus: Bus) -> None:
    cable.claims = usb1.USBErrorBusy()
    with pytest.raises(UsbBusyError, match=r"^adb:R58N30: another program holds its USB interface: close it, or run `adb start-server`"):
        connect("adb:R58N30")
    cable.claims = None
    other = Cable("OTHER")
    other.refuses = usb1.USBErrorAccess()
    bus(other, cable)
    link = connect("adb:R58N30")
    link.close()
    with pytest.raises(UsbRightsError, match="udev rules"):
        connect("adb:NO-SUCH")
    bus(cable)
    with pytest.raises(NotAttachedError, match=r"adb:NO-SUCH is not attached"):
        connect("adb:NO-SUCH")


def test_it_does_not_know_the_key(cable: Cable, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adb_shell.auth.keygen import keygen

    (tmp_path / ".android").mkdir()
    keygen(str(tmp_path / ".android" / "adbkey"))
    keygen(str(tmp_path / "other"))
    phone.relay(public_key=public_pem(tmp_path / "other"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UnauthorizedError, match="accept the USB debugging question on its screen"):
        connect("adb:R58N30", timeout_s=1.0)
