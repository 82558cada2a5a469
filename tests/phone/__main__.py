"""A phone to try every command on, without a phone: `make phone`, or

    python -m tests.phone [--arch arm64] [--serial NAME] [--port PORT] [--slow MB/S] [--room MB]

Runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import threading

from tests.phone.install import Unavailable
from tests.phone.phone import FakePhone

MB = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.phone", description="A real adbd in namespaces of its own, until Ctrl-C.")
    parser.add_argument("--arch", choices=["amd64", "arm64"], default="amd64", help="arm64 runs under qemu: no time means anything there")
    parser.add_argument("--serial", default="TEST0001")
    parser.add_argument("--port", type=int, default=0, help="where it listens on 127.0.0.1; default: any free port")
    parser.add_argument("--slow", type=float, metavar="MB/S", help="a slow cable")
    parser.add_argument("--room", type=int, default=2000, metavar="MB", help="space on its disk")
    options = parser.parse_args()
    try:
        phone = FakePhone(options.arch, serial=options.serial, port=options.port, data_bytes=options.room * MB)
    except Unavailable as reason:
        raise SystemExit(f"no phone for tests here: {reason}") from None
    # Also when started in the background, where Ctrl-C is ignored, and ended by its number: nothing of it stays.
    for ends in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ends, signal.default_int_handler)
    with phone:
        if options.slow:
            phone.relay(bytes_per_s=options.slow * MB)
        print(f"the {options.arch} phone {options.serial} is up; Ctrl-C ends it. Its /sys and /system: {phone.sys.parent}")
        print(f"  archsearch doctor --device adb:{phone.address}")
        print(f"  or through adb's server: adb connect {phone.address}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
