"""A phone, taken for oneself while something is measured: a small shell on the phone holds a lock, and puts back what it changed.

When this program ends, however it ends, or the cable is pulled, adbd hangs up on that shell: it ends what is left of our agents (one
that is stopped would outlive adbd's hanging up on it), restores the mode, and the lock is free.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from devices.adb.errors import InUseError, LinkLostError, PhoneFullError, ShellFailedError
from devices.adb.shell import ShellProcess, run
from devices.adb.stream import Link

HOME = "/data/local/tmp/archsearch"
"""Where AOSP's policy lets the shell write and execute."""
IN_USE = 75
READY_LIMIT_S = 60.0
RELEASE_LIMIT_S = 10.0
GUARD = r"""
mkdir -p %(home)s && cd %(home)s || exit 73
if command -v flock >/dev/null; then
  exec 9>>lock
  flock -n 9 9>&9 || { read -r owner <owner; echo "$owner"; exit 75; }
fi
echo %(owner)s >owner
fixed=no
end=
leave() {
  [ "$end" = done ] || ls -l /proc/[0-9]*/cwd 2>/dev/null | while read -r entry; do
    case "$entry" in *" -> %(home)s/bundles/"*) entry=${entry%%%%/cwd -> *}; kill -9 "${entry##*/proc/}" 2>/dev/null ;; esac
  done
  [ $fixed = yes ] && cmd power set-fixed-performance-mode-enabled false >/dev/null 2>&1
  fixed=no
}
trap leave EXIT
trap 'exit 129' HUP INT TERM
cmd power set-fixed-performance-mode-enabled true >/dev/null 2>&1 && fixed=yes
echo "ready $fixed"
read -r end
"""
"""The lock belongs to the open file: it is free when the shell is gone, whatever the reason."""
DONE = b"done\n"
"""Tells the shell that all agents have been waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A phone that is ours until the block ends."""

    link: Link
    fixed_performance: bool
    """Whether it keeps its clocks at a level that it can hold."""


@contextlib.contextmanager
def taken(link: Link) -> Iterator[Session]:
    """Take the phone, and end what an earlier run that died in an odd way has left running there.

    Raises:
        InUseError: another archsearch has it.
        LinkLostError, ShellFailedError: it does not answer as it must.
    """
    owner = f"{platform.node() or 'unknown host'}, process {os.getpid()}"
    guard = ShellProcess(link, GUARD % {"home": HOME, "owner": shlex.quote(owner)})
    try:
        try:
            line = guard.read_line(READY_LIMIT_S)
        except TimeoutError:
            raise LinkLostError(link.device_id, f"no answer for {READY_LIMIT_S:g} s") from None
        if line is None or not line.startswith("ready"):
            with contextlib.suppress(TimeoutError):
                while guard.read(READY_LIMIT_S) is not None:
                    pass
            status = guard.status if guard.status is not None else 255
            if status == IN_USE:
                raise InUseError(link.device_id, line or "unknown")
            said = guard.errors.decode(errors="replace")
            if "No space left" in said:
                raise PhoneFullError(link.device_id, 1, None)
            raise ShellFailedError(link.device_id, f"making {HOME}", status, said or line or "")
        kill_leftovers(link)
        yield Session(link=link, fixed_performance=line.endswith("yes"))
    finally:
        _release(guard)


def _release(guard: ShellProcess) -> None:
    """Let the guard go, and see it gone: whoever comes next, perhaps ourselves, must find the phone free."""
    with contextlib.suppress(LinkLostError, TimeoutError):
        guard.write(DONE)
        guard.close_stdin()
        while guard.read(RELEASE_LIMIT_S) is not None:
            pass
    guard.close()


def kill_leftovers(link: Link) -> list[int]:
    """End every program whose working folder is one of our bundles, and wait, a second at most, until they are gone.

    Only the lock's holder may do this.

    Returns:
        Their process ids.
    """
    listing = run(link, "ls -l /proc/[0-9]*/cwd 2>/dev/null").stdout
    found = [int(pid) for pid in re.findall(rf"/proc/(\d+)/cwd -> {HOME}/bundles/", listing)]
    if found:
        # A killed process takes a moment to be gone (one that nobody reaps has no cwd), and nothing may be timed beside it.
        pids = " ".join(map(str, found))
        gone = "while [ -e /proc/$p/cwd ] && [ $n -lt 50 ]; do sleep 0.02; n=$((n + 1)); done"
        run(link, f"kill -9 {pids}; n=0; for p in {pids}; do {gone}; done")
    return found
