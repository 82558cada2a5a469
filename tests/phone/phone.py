"""A phone for tests: a real adbd in namespaces of its own, with a phone's file system around it.

    with FakePhone("amd64") as phone:
        open_device(f"adb:{phone.address}")

"amd64" runs the machine's own programs at full speed; "arm64" runs aarch64 programs under qemu, where no time means anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.phone import root as files
from tests.phone.install import Arch, Unavailable, unpacked

ABIS: dict[Arch, str] = {"amd64": "x86_64", "arm64": "arm64-v8a"}
ADBD = "usr/lib/android-sdk/platform-tools/adbd"
CPUINFO = (
    "processor\t: {core}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd08\n\n"
)
NAMESPACES = ("--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
START_LIMIT_S = 90.0


class FakePhone:
    """Up when made; `close` ends everything in it at once.

    Attributes:
        address: HOST:PORT where adbd can be reached.
        root: the phone's files, seen from outside.
        sys, system: the folders behind its /sys and /system, for tests to change.

    Raises:
        Unavailable: this machine has no namespaces, no network for the packages, or no qemu.
    """

    def __init__(self, arch: Arch = "amd64", *, serial: str = "TEST0001", data_bytes: int = 2**30, port: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="phone-")
        place = Path(self._folder.name)
        try:
            config = self._lay(place, arch, serial, data_bytes)
            self._up(place, config, port)
        except BaseException:
            self._folder.cleanup()
            raise

    def _lay(self, place: Path, arch: Arch, serial: str, data_bytes: int) -> dict[str, Any]:
        if missing := [tool for tool in ("unshare", "mount", "ip", "chroot") if shutil.which(tool) is None]:
            raise Unavailable(f"no {', '.join(missing)} here (Debian: util-linux, mount, iproute2, coreutils)")
        if subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, check=False).returncode:
            raise Unavailable("this machine does not let us make namespaces (unshare --user --mount --net --pid)")
        self.system, self.sys = place / "system", place / "sys"
        self._properties = files.properties(ABIS[arch], serial)
        files.lay_system(self.system, self._properties)
        files.lay_sys(self.sys, cores=files.cores_here())
        packages = unpacked(arch)
        (place / "root").mkdir()
        config: dict[str, Any] = {
            "arch": arch,
            "root": str(place / "root"),
            "packages": str(packages),
            "system": str(self.system),
            "sys": str(self.sys),
            "data_bytes": data_bytes,
            "log": str(place / "adbd.log"),
        }
        if arch == "amd64":
            libraries = "/adbd/usr/lib/x86_64-linux-gnu:/adbd/usr/lib/x86_64-linux-gnu/android"
            loader = "/adbd/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
            return config | {"adbd": [loader, "--library-path", libraries, f"/adbd/{ADBD}"]}
        qemu = next((path for name in ("qemu-aarch64-static", "qemu-aarch64") if (path := shutil.which(name))), None)
        if qemu is None:
            raise Unavailable("no qemu-aarch64-static here (Debian: qemu-user-static)")
        (place / "cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(files.cores_here())))
        return config | {"adbd": [f"/{ADBD}"], "qemu": qemu, "cpuinfo": str(place / "cpuinfo")}

    def _up(self, place: Path, config: dict[str, Any], port: int) -> None:
        listener = socket.create_server(("127.0.0.1", port))
        self.port = listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        ours, theirs = socket.socketpair()
        (place / "config.json").write_text(json.dumps(config | {"listener": listener.fileno(), "control": theirs.fileno()}))
        command = ["unshare", *NAMESPACES, sys.executable, str(Path(__file__).with_name("inside.py")), str(place / "config.json")]
        with listener, theirs, open(place / "inside.log", "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), theirs.fileno()),
                start_new_session=True,
            )
        self._control, self._lines = ours, ours.makefile("rw", encoding="utf-8")
        ours.settimeout(START_LIMIT_S)
        try:
            self._answer()
        except (OSError, EOFError) as error:
            said = (place / "inside.log").read_text(errors="replace").strip().splitlines()[-1:]
            self._end()
            raise Unavailable(f"the phone for tests did not start: {' '.join(said) or error}") from error
        self.root = Path(f"/proc/{self._child()}/root") / config["root"].lstrip("/")

    # -- what can happen to a phone --------------------------------------------------------------------------------------

    def relay(self, **settings: Any) -> None:
        """Change how connections are carried; see `tests.phone.relay.Relay`."""
        self._order({"do": "relay", "with": settings})

    def unplug(self) -> None:
        self.relay(plugged=False)

    def plug(self) -> None:
        self.relay(plugged=True)

    def reboot(self, seconds: float = 0.2) -> None:
        """All its processes die, and adbd comes back after a while."""
        self._order({"do": "reboot", "seconds": seconds})

    def restart_adbd(self) -> None:
        """adbd alone dies, and is started anew at once; what it had started lives on, as far as it can."""
        self._order({"do": "restart_adbd"})

    def reset(self) -> None:
        """As new: nothing runs on it, nothing is stored, the cable is in and fast."""
        self.relay(plugged=False, frozen=False, bytes_per_s=None, cut_after=None, public_key=None, wants_tls=False)
        self.reboot(0.0)
        for entry in (self.root / "data" / "local" / "tmp").iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.rmtree(self.system / "dumpsys")
        for file in self.system.iterdir():
            if file.is_file():
                file.unlink()
        files.lay_services(self.system, self._properties)
        files.lay_sys(self.sys, cores=files.cores_here())

    def processes(self, word: str = "") -> list[int]:
        """Process ids, as this machine counts, of what runs on the phone with `word` in its command line."""
        import psutil

        found = []
        for process in psutil.Process(self._child()).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and word in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    def close(self) -> None:
        self._end()
        self._folder.cleanup()

    def __enter__(self) -> FakePhone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, order: dict[str, Any]) -> None:
        self._lines.write(json.dumps(order) + "\n")
        self._lines.flush()
        self._answer()

    def _answer(self) -> Any:
        line = self._lines.readline()
        if not line:
            raise EOFError("the phone for tests has ended")
        return json.loads(line)

    def _child(self) -> int:
        text = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        return int(text.split()[0])

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._lines.close()
        self._control.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
