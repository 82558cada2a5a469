"""The link to a phone against a real adbd: directly, and through a real adb server."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.adb.direct import DirectLink
from devices.adb.errors import (
    LinkLostError,
    NoKeyError,
    NotAttachedError,
    OfflineError,
    ShellFailedError,
    UnauthorizedError,
    WirelessTlsError,
)
from devices.adb.links import connect
from devices.adb.server import ServerLink
from devices.adb.shell import check, run, running
from devices.adb.stream import Link, Refused
from devices.adb.sync import PushFailed, push
from tests.phone.helpers import adb, free_port
from tests.phone.phone import FakePhone

PLACE = "/data/local/tmp"


@pytest.fixture(params=["direct", "server"])
def link(request: pytest.FixtureRequest, phone: FakePhone) -> Iterator[Link]:
    if request.param == "server":
        request.getfixturevalue("adb_server")
        assert "connected" in adb("connect", phone.address)
    found = connect(f"adb:{phone.address}")
    assert isinstance(found, ServerLink if request.param == "server" else DirectLink), "the server's phone goes through the server"
    yield found
    found.close()


# -- commands ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_exit_status_and_both_outputs_are_apart(link: Link, status: int) -> None:
    done = run(link, f"echo out; echo err >&2; exit {status}")
    assert (done.status, done.stdout, done.stderr) == (status, "out\n", "err\n")


def test_a_signal_can_be_told_from_an_exit(link: Link) -> None:
    assert run(link, "kill -9 $$").status == 128 + 9
    with pytest.raises(ShellFailedError, match=r"adb:127.0.0.1:\d+: trying failed on the phone \(exit status 3\): no such luck") as caught:
        check(link, "echo no such luck >&2; exit 3", "trying")
    assert caught.value.status == 3


def test_much_output_arrives_whole(link: Link) -> None:
    done = run(link, "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done")
    assert done.stdout.splitlines() == [f"line {i}" for i in range(20000)]


def test_stdin_stays_open_until_it_is_closed(link: Link) -> None:
    with running(link, 'while read -r line; do echo "<$line>"; done; echo end') as process:
        process.write(b"one\ntw")
        assert process.read_line(10) == "<one>"
        with pytest.raises(TimeoutError):
            process.read_line(0.2)
        process.write(b"o\n")
        assert process.read_line(10) == "<two>"
        process.close_stdin()
        assert [process.read_line(10), process.read_line(10), process.status] == ["end", None, 0]


def test_two_commands_at_once(link: Link) -> None:
    with running(link, "read -r line; echo first $line") as first, running(link, "read -r line; echo second $line") as second:
        second.write(b"b\n")
        assert second.read_line(10) == "second b"
        first.write(b"a\n")
        assert first.read_line(10) == "first a"


def test_a_command_that_is_silent_for_long_is_waited_for(link: Link) -> None:
    # adb-shell by itself would give up, or lose the packet that comes after its time-out.
    with running(link, "sleep 1; echo late") as process:
        with pytest.raises(TimeoutError):
            process.read_line(0.3)
        assert process.read_line(10) == "late"


def test_leaving_a_command_ends_it(link: Link, phone: FakePhone) -> None:
    with running(link, "exec sleep 4242") as process:
        with pytest.raises(TimeoutError):
            process.read(0.2)
        assert phone.processes("sleep 4242")
    deadline = time.monotonic() + 20
    while phone.processes("sleep 4242"):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)
    assert run(link, "echo fine").stdout == "fine\n"


def test_a_service_that_there_is_not(link: Link) -> None:
    with pytest.raises((Refused, LinkLostError)):
        link.open("no-such-service:")


# -- files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 5_000_001])
def test_what_is_pushed_arrives(link: Link, tmp_path: Path, size: int) -> None:
    source = tmp_path / "file"
    source.write_bytes(os.urandom(size))
    sent: list[int] = []
    push(link, source, f"{PLACE}/a file", mode=0o755, sent=sent.append)
    assert sum(sent) == size
    said = check(link, f"sha256sum <'{PLACE}/a file'; [ -x '{PLACE}/a file' ] && echo executable", "reading").split()
    assert said == [hashlib.sha256(source.read_bytes()).hexdigest(), "-", "executable"]


def test_a_place_that_cannot_be_written_says_why(link: Link, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 300_000)
    with pytest.raises(PushFailed, match=r"(?i)not a directory|read-only|no such file"):
        push(link, tmp_path / "file", "/proc/version/x")
    assert run(link, "echo fine").stdout == "fine\n"


def test_a_slow_cable_takes_its_time(link: Link, phone: FakePhone, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(600_000))
    phone.relay(bytes_per_s=400_000)
    push(link, tmp_path / "file", f"{PLACE}/file")
    phone.relay(bytes_per_s=None)
    assert check(link, f"sha256sum <{PLACE}/file", "reading").split()[0] == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()


# -- what stands in the way --------------------------------------------------------------------------------------------------


def test_a_cable_that_is_pulled_during_a_push(link: Link, phone: FakePhone, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3_000_000))
    phone.relay(cut_after=1_000_000)
    with pytest.raises((LinkLostError, PushFailed)):
        push(link, tmp_path / "file", f"{PLACE}/file")


def test_a_cable_that_is_pulled_while_we_listen(link: Link, phone: FakePhone) -> None:
    with running(link, "echo begun; sleep 100") as process:
        assert process.read_line(10) == "begun"
        phone.unplug()
        begun = time.monotonic()
        with pytest.raises(LinkLostError, match=r"the connection broke.*replug it"):
            process.read_line(30)
        assert time.monotonic() - begun < 15, "the end of a connection is noticed at once, not by a time-out"


def test_nobody_listens(lonely: None) -> None:
    port = free_port()
    with pytest.raises(NotAttachedError, match=rf"adb:127.0.0.1:{port} is not attached.*refused"):
        connect(f"adb:127.0.0.1:{port}")
    with pytest.raises(NotAttachedError, match=r"adb:NO-SUCH is not attached: switch USB debugging on.*no adb server runs"):
        connect("adb:NO-SUCH")


def test_a_phone_that_is_unplugged(phone: FakePhone) -> None:
    phone.unplug()
    with pytest.raises(OfflineError, match="replug the cable"):
        connect(f"adb:{phone.address}", timeout_s=5.0)


def test_the_right_key_the_wrong_one_and_none(phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adb_shell.auth.keygen import keygen

    keys = {}
    for name in ("right", "wrong"):
        (tmp_path / name / ".android").mkdir(parents=True)
        keygen(str(tmp_path / name / ".android" / "adbkey"))
        keys[name] = public_pem(tmp_path / name / ".android" / "adbkey")
    phone.relay(public_key=keys["right"])
    device_id = f"adb:{phone.address}"

    with pytest.raises(NoKeyError, match=r"~/.android/adbkey does not exist: `adb start-server` makes one"):
        connect(device_id, timeout_s=1.0)
    monkeypatch.setenv("HOME", str(tmp_path / "wrong"))
    with pytest.raises(UnauthorizedError, match="accept the USB debugging question on its screen"):
        connect(device_id, timeout_s=1.0)
    monkeypatch.setenv("HOME", str(tmp_path / "right"))
    link = connect(device_id, timeout_s=5.0)
    assert run(link, "echo in").stdout == "in\n"
    link.close()


def test_a_server_with_the_wrong_key(phone: FakePhone, adb_server: Path, tmp_path: Path) -> None:
    from adb_shell.auth.keygen import keygen

    keygen(str(tmp_path / "other"))
    phone.relay(public_key=public_pem(tmp_path / "other"))
    adb("connect", phone.address)
    with pytest.raises((UnauthorizedError, OfflineError), match="run the same command again"):
        connect(f"adb:{phone.address}")


def test_wireless_debugging(phone: FakePhone) -> None:
    phone.relay(wants_tls=True)
    with pytest.raises(WirelessTlsError, match=rf"pair it with `adb pair HOST:PORT CODE`.*run `adb connect {phone.address}`"):
        connect(f"adb:{phone.address}", timeout_s=5.0)


def public_pem(private: Path) -> str:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
