"""Phones: found and described. The servers here are fakes that speak the protocol; test_phone_link.py has the real ones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import devices
from devices import DeviceBusyError, DeviceError, UnknownDeviceError, adb, list_devices, open_device
from devices.adb import describe
from devices.adb.server import AdbServer
from devices.base import DeviceInfo
from devices.local import LocalDevice
from devices.machine import runtime_name
from tests.devices.adb_server import FakeServer, listening
from tests.phone.bundles import python_bundle
from tests.phone.phone import FakePhone as PhoneForTest

ANSWER = """[ro.board.platform]: [lahaina]
[ro.build.fingerprint]: [maker/x/y:14/AP1A/1:user/release-keys]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.product.cpu.abi]: [arm64-v8a]
[ro.product.manufacturer]: [Maker]
[ro.product.model]: [Phone 9 [Pro]]
[ro.soc.manufacturer]: [QTI]
[ro.soc.model]: [SM8350]
[ro.serialno]: [R58N30]
====cpus
0 325 1804800
1 325 1804800
2 325 1804800
3 325 1804800
4 760 2419200
5 760 2419200
6 760 2419200
7 1024 2841600
====allowed
0-7
====memory
MemTotal:        7654321 kB
====kernel
aarch64
aarch64
====end
"""
LISTING = """R58N30           device usb:1-4 product:x1 model:Phone_9 device:x1 transport_id:3
emulator-5554    offline transport_id:4
0A1B             unauthorized usb:1-5 transport_id:5
99XX             no permissions (missing udev rules?); see [http://x] usb:1-6 transport_id:6
10.0.0.7:5555    recovery transport_id:8
"""


@contextmanager
def server(fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with listening(fake.handle) as port:
        monkeypatch.delenv("ADB_SERVER_SOCKET", raising=False)
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        yield


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("ADB_SERVER_SOCKET", f"tcp:127.0.0.1:{taken.getsockname()[1]}")


def phones(monkeypatch: pytest.MonkeyPatch, listing: str = LISTING, shells: dict[str, str] | None = None) -> dict[str, DeviceInfo]:
    with server(FakeServer(listing, shells), monkeypatch):
        return {phone.device_id: phone for phone in adb.list_phones()}


def test_a_phone_is_described_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(python_bundle(tmp_path, abi="arm64-v8a")))
    fake = FakeServer(LISTING, {"R58N30": ANSWER})
    with server(fake, monkeypatch):
        phone = adb.list_phones()[0]
    assert (phone.device_id, phone.available, phone.runtime, phone.problem) == ("adb:R58N30", True, runtime_name(), None)
    assert (phone.name, phone.system, phone.cpu) == ("Maker Phone 9 [Pro]", "Android 14 arm64-v8a", "QTI SM8350")
    assert (phone.cores, phone.memory_bytes) == (8, 7654321 * 1024)
    assert (phone.extra["sdk"], phone.extra["soc"], phone.extra["abis"]) == ("34", "QTI SM8350", ["arm64-v8a"])
    assert [(c["cores"], c["max_mhz"]) for c in phone.extra["clusters"]] == [([7], 2841), ([4, 5, 6], 2419), ([0, 1, 2, 3], 1804)]
    assert "emulated" not in phone.extra
    assert fake.commands == [describe.QUESTION]


@pytest.mark.parametrize(
    "serial",
    ["adb-R58N (2)._adb-tls-connect._tcp", "12-34_a.b", "a'b\"c", "$(reboot)", "émulateur", "device", "????????????", "[fe80::1]:5555"],
)
def test_serials_with_odd_characters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serial: str) -> None:
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(python_bundle(tmp_path, abi="arm64-v8a")))
    answer = ANSWER.replace("[R58N30]", f"[{serial}]")
    with server(FakeServer(f"{serial:22} device usb:1-4 model:Phone_9\n", {serial: answer}), monkeypatch):
        (phone,) = adb.list_phones()
        opened = open_device(f"adb:{serial}").info
    assert (phone.device_id, phone.available, phone.extra["serial"]) == (f"adb:{serial}", True, serial)
    assert opened == phone


def test_a_phone_that_no_server_knows_is_asked_by_its_name(
    no_server: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, phone: PhoneForTest
) -> None:
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(python_bundle(tmp_path)))
    _, found, gone = list_devices([f"adb:{phone.address}", "adb:127.0.0.1:1"])
    assert (found.device_id, found.name, found.available) == (f"adb:{phone.address}", "archsearch Test Phone", True)
    assert (gone.device_id, gone.available) == ("adb:127.0.0.1:1", False)
    assert "is not attached" in (gone.problem or "")
    with pytest.raises(UnknownDeviceError, match="'cuda:0' is no phone; one is named adb:SERIAL or adb:HOST:PORT"):
        list_devices(["cuda:0"])


def test_a_phone_without_an_agent_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHSEARCH_AGENT", str(tmp_path))
    phone = phones(monkeypatch, shells={"R58N30": ANSWER})["adb:R58N30"]
    assert not phone.available
    assert "no agent for it yet: " in (phone.problem or "")
    assert "archsearch agent build" in (phone.problem or "")


def test_lines_may_end_as_old_phones_end_them(monkeypatch: pytest.MonkeyPatch) -> None:
    phone = phones(monkeypatch, shells={"R58N30": ANSWER.replace("\n", "\r\n")})["adb:R58N30"]
    assert (phone.name, phone.cores, phone.memory_bytes) == ("Maker Phone 9 [Pro]", 8, 7654321 * 1024)


def test_every_state_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found = phones(monkeypatch)
    assert list(found) == ["adb:R58N30", "adb:emulator-5554", "adb:0A1B", "adb:99XX", "adb:10.0.0.7:5555"]
    problems = {name: phone.problem or "" for name, phone in found.items()}
    assert "reconnect" in problems["adb:emulator-5554"]
    assert "accept the USB debugging question" in problems["adb:0A1B"]
    assert "may not open its USB device" in problems["adb:99XX"]
    assert "'recovery'" in problems["adb:10.0.0.7:5555"]
    assert not any(phone.available for phone in found.values())


def test_a_phone_that_does_not_answer_keeps_the_servers_description(monkeypatch: pytest.MonkeyPatch) -> None:
    phone = phones(monkeypatch, shells={})["adb:R58N30"]
    assert (phone.name, phone.cores, phone.cpu) == ("Phone 9", 0, "")


def test_no_phones_and_no_server(monkeypatch: pytest.MonkeyPatch, no_server: None) -> None:
    assert adb.list_phones() == []
    monkeypatch.setenv("ADB_SERVER_SOCKET", "tcp:127.0.0.1:not-a-port")
    assert adb.list_phones() == []
    monkeypatch.delenv("ADB_SERVER_SOCKET")
    assert phones(monkeypatch, listing="") == {}


@pytest.mark.parametrize("answer", [b"", b"OKAY", b"OKAYzzzz", b"OKAY0010short", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"FAIL0003no!"])
def test_something_else_that_listens_there(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    def handle(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)

    with listening(handle) as port:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        assert adb.list_phones() == []


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(silent.getsockname()[1]))
        assert adb.list_phones(timeout_s=0.2) == []


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ("127.0.0.1", 5037)),
        ({"ANDROID_ADB_SERVER_PORT": "6000"}, ("127.0.0.1", 6000)),
        ({"ADB_SERVER_SOCKET": "tcp:host:6001", "ANDROID_ADB_SERVER_PORT": "6000"}, ("host", 6001)),
        ({"ADB_SERVER_SOCKET": "tcp:6001"}, ("127.0.0.1", 6001)),
        ({"ADB_SERVER_SOCKET": "tcp:[::1]:6001"}, ("::1", 6001)),
        ({"ADB_SERVER_SOCKET": "localabstract:adb", "ANDROID_ADB_SERVER_PORT": "6000"}, ("127.0.0.1", 6000)),
    ],
)
def test_where_the_server_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], address: tuple[str, int]) -> None:
    for name in ("ADB_SERVER_SOCKET", "ANDROID_ADB_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert AdbServer.address() == address


# -- names -------------------------------------------------------------------------------------------------------------------


def test_this_machine_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(FakeServer(LISTING), monkeypatch):
        assert [info.device_id for info in list_devices()][:2] == ["local", "adb:R58N30"]
        assert isinstance(open_device("local"), LocalDevice)


def test_a_phone_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ARCHSEARCH_AGENT", raising=False)
    monkeypatch.setattr("devices.build.cache_folder", lambda: tmp_path)
    with server(FakeServer(LISTING, {"R58N30": ANSWER}), monkeypatch):
        with pytest.raises(DeviceError, match=r"adb:R58N30: there is no agent for its processor \(arm64-v8a\): .*archsearch agent build"):
            open_device("adb:R58N30")
        with pytest.raises(DeviceBusyError, match="adb:0A1B: it does not know this machine's key: unlock it and accept"):
            open_device("adb:0A1B")
        with pytest.raises(UnknownDeviceError, match=r"adb:other is not attached: .*the adb server knows: R58N30, emulator-5554"):
            open_device("adb:other")


@pytest.mark.parametrize("name", ["", "Local", "local:0", "adb", "adb:", "adb: x", "cuda", "cuda:", "cuda:x", "usb:1", "loca l"])
def test_names_that_do_not_parse(no_server: None, name: str) -> None:
    with pytest.raises(UnknownDeviceError, match=r"is no device; one is named local, adb:SERIAL, .* or cuda:0; there are: local$"):
        open_device(name)


def test_gpus_are_for_later(no_server: None) -> None:
    with pytest.raises(UnknownDeviceError, match="cuda:0: measuring on GPUs is not part of this version"):
        open_device("cuda:0")


def test_without_the_runtime_this_machine_says_so(no_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devices.machine.RUNTIMES", ("no-such-runtime",))
    with pytest.raises(DeviceBusyError, match="local: onnxruntime is not installed: pip install onnxruntime"):
        open_device("local")


def test_exported_names() -> None:
    errors = {"AgentError", "DeviceBusyError", "DeviceError", "UnknownDeviceError"}
    assert set(devices.__all__) == errors | {"Device", "DeviceInfo", "list_devices", "measure_limits", "open_device"}
    for name in errors:
        assert issubclass(getattr(devices, name), devices.DeviceError)
