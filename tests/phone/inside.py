"""The first process inside a phone's namespaces: mounts its root, starts adbd there, and carries connections to it.

adbd binds every interface, so it has a network namespace of its own. The listening socket comes from outside, through which a test
reaches it; what is carried can be slowed, frozen or cut, and the question for the user's key put before it, which Debian's adbd omits.

    unshare --user --map-root-user --mount --net --pid --fork --mount-proc python inside.py CONFIG

Control lines are read from the inherited socket `control`; when its other end closes, this process ends and with it everything here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

if __package__:
    from tests.phone.relay import Relay
else:  # started by its path, in namespaces where nothing else is set up
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.phone.relay import Relay

PORT = 7555
OWN = {"data", "dev", "proc", "sys", "system", "lost+found"}
"""What the amd64 phone does not share with the machine it runs on."""


def main() -> None:
    # Hanging up is how adbd ends a command; started under nohup, or by a CI that ignores it, the phone would ignore it too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    root = Path(config["root"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    mount("-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", root)
    (lay_amd64 if config["arch"] == "amd64" else lay_arm64)(root, config)
    phone = Phone(root, config)
    phone.start()
    relay = Relay(socket.socket(fileno=config["listener"]), ("127.0.0.1", PORT))
    threading.Thread(target=relay.serve, daemon=True).start()
    control = socket.socket(fileno=config["control"])
    lines = control.makefile("rw", encoding="utf-8")
    tell = lambda **what: (lines.write(json.dumps(what) + "\n"), lines.flush())  # noqa: E731
    tell(ready=True)
    for line in lines:
        order = json.loads(line)
        match order["do"]:
            case "reboot":
                relay.plugged = False
                phone.stop()
                time.sleep(order["seconds"])
                phone.start()
                relay.plugged = True
            case "restart_adbd":
                phone.stop_adbd()
                phone.start()
            case "relay":
                relay.set(**order["with"])
        tell(done=order["do"])


class Phone:
    """adbd in the phone's root; what it starts dies with it when the phone reboots."""

    def __init__(self, root: Path, config: dict[str, Any]) -> None:
        self.root, self.config = root, config
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["chroot", self.root, *self.config["adbd"]]
        environment = {
            "ADBD_PORT": str(PORT),
            "PATH": "/system/bin:/usr/bin:/bin:/usr/sbin",
            "HOME": "/data/local/tmp",
            "TMPDIR": "/data/local/tmp",
        }
        with open(self.config["log"], "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), timeout=1):
                return
            if self.process.poll() is not None:
                raise SystemExit(f"adbd ended with {self.process.returncode}: see {self.config['log']}")
            time.sleep(0.05)
        raise SystemExit("adbd does not listen")

    def stop_adbd(self) -> None:
        """adbd ends by itself, as when it crashes or its settings change: what it had started is not ended with it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """A reboot: no process of the phone is left. This one is the init of its namespace, and stays."""
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def lay_amd64(root: Path, config: dict[str, Any]) -> None:
    """The machine's own userland, seen from a phone: own /data, /sys and /system."""
    for entry in sorted(Path("/").iterdir()):
        target = root / entry.name
        if entry.name in OWN:
            continue
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry))
        elif entry.is_dir():
            target.mkdir()
            mount("--rbind", entry, target)
    (root / "adbd").mkdir()
    mount("--bind", config["packages"], root / "adbd")
    lay_common(root, config)


def lay_arm64(root: Path, config: dict[str, Any]) -> None:
    """Nothing but aarch64 programs; the kernel hands them to qemu, which it has opened before the root changed (flag F)."""
    for entry in ("usr", "etc"):
        (root / entry).mkdir()
        mount("--bind", Path(config["packages"]) / entry, root / entry)
    (root / "lib").symlink_to("usr/lib")
    (root / "tmp").mkdir()
    (root / "bin").mkdir()
    lay_common(root, config)
    binfmt = Path("/proc/sys/fs/binfmt_misc")
    mount("-t", "binfmt_misc", "binfmt_misc", binfmt)
    magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
    (binfmt / "register").write_text(f":phone-aarch64:M::{magic}:{mask}:{config['qemu']}:FP")
    # A phone's shell is mksh, and its commands are toybox, which says itself what it has.
    (root / "bin" / "sh").symlink_to("/usr/bin/mksh")
    for name in subprocess.run(["chroot", root, "/usr/bin/toybox"], capture_output=True, text=True, check=True).stdout.split():
        if name != "sh":
            (root / "bin" / name).symlink_to("/usr/bin/toybox")


def lay_common(root: Path, config: dict[str, Any]) -> None:
    for name in ("system", "sys"):
        (root / name).mkdir()
        mount("--bind", config[name], root / name)
    if Path("/sys/kernel/mm").is_dir():  # malloc asks there whether there are huge pages: without an answer, it uses none
        mount("--bind", "/sys/kernel/mm", root / "sys" / "kernel" / "mm")
    for name in ("dev", "proc"):
        (root / name).mkdir()
        mount("--rbind", f"/{name}", root / name)
    data = root / "data"
    data.mkdir()
    mount("-t", "tmpfs", "-o", f"size={config['data_bytes']},mode=755", "tmpfs", data)
    (data / "local" / "tmp").mkdir(parents=True)
    if "cpuinfo" in config:
        mount("--bind", config["cpuinfo"], root / "proc" / "cpuinfo")


def mount(*arguments: Any) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
