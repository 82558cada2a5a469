"""A phone, taken for oneself while something is measured: a small shell on the phone holds a lock, and puts back what it changed.

When this program ends, however it ends, or the cable is pulled, adbd hangs up on that shell: it ends what is left of our agents (one
that is stopped would outlive adbd's hanging up on it), restores the mode, and the lock is free.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

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
echo "$$" %(owner)s >owner
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
TAKE_OVER = r"""
grep -q %(home)s /proc/%(guard)d/cmdline || exit 0
kill -HUP %(guard)d; n=0
while kill -0 %(guard)d 2>/dev/null && [ $n -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
kill -9 %(guard)d 2>/dev/null
true
"""
"""Ends a guard as adbd's hanging up would."""
DONE = b"done\n"
"""Tells the shell that all agents have been waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A phone that is ours until the block ends."""

    link: Link
    fixed_performance: bool
    """Whether it keeps its clocks at a level that it can hold."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a phone: a session of a process of a machine."""

    machine: str
    process: int
    session: str

    @classmethod
    def new(cls) -> Owner:
        return cls(platform.node() or "unknown-host", os.getpid(), secrets.token_hex(4))

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """From what `line` wrote; None for what is no owner."""
        machine, _, rest = text.strip().partition(", process ")
        process, _, session = rest.partition(" ")
        return cls(machine, int(process), session) if process.isdigit() else None

    @property
    def line(self) -> str:
        return f"{self} {self.session}"

    def __str__(self) -> str:
        return f"{self.machine}, process {self.process}"

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended: a connection that broke without a word leaves its guard on the phone.

        Of other machines nothing is known.
        """
        if self.machine != platform.node():
            return False
        return self.session not in _open if self.process == os.getpid() else not psutil.pid_exists(self.process)


_open: set[str] = set()
"""Sessions of this process."""


@contextlib.contextmanager
def taken(link: Link) -> Iterator[Session]:
    """Take the phone, also from a session that has ended and that it still waits for; and end what an earlier run has left running there.

    Raises:
        InUseError: another archsearch has it.
        LinkLostError, ShellFailedError: it does not answer as it must.
    """
    owner = Owner.new()
    _open.add(owner.session)
    guard: ShellProcess | None = None
    try:
        guard, line = _guarded(link, owner)
        kill_leftovers(link)
        yield Session(link=link, fixed_performance=line.endswith("yes"))
    finally:
        _open.discard(owner.session)
        if guard is not None:
            _release(guard)


def _guarded(link: Link, owner: Owner, *, insist: bool = True) -> tuple[ShellProcess, str]:
    """The shell that holds the phone for us, and its first line."""
    guard = ShellProcess(link, GUARD % {"home": HOME, "owner": shlex.quote(owner.line)})
    try:
        line = guard.read_line(READY_LIMIT_S)
        if line is not None and line.startswith("ready"):
            return guard, line
        with contextlib.suppress(TimeoutError):
            while guard.read(READY_LIMIT_S) is not None:
                pass
    except TimeoutError:
        guard.close()
        raise LinkLostError(link.device_id, f"no answer for {READY_LIMIT_S:g} s") from None
    except BaseException:
        guard.close()
        raise
    guard.close()
    status = guard.status if guard.status is not None else 255
    if status == IN_USE:
        number, _, rest = (line or "").partition(" ")
        other = Owner.parse(rest)
        if insist and other is not None and other.gone and number.isdigit():
            run(link, TAKE_OVER % {"home": HOME, "guard": int(number)})
            return _guarded(link, owner, insist=False)
        raise InUseError(link.device_id, str(other or line or "unknown"))
    said = guard.errors.decode(errors="replace")
    if "No space left" in said:
        raise PhoneFullError(link.device_id, 1, None)
    raise ShellFailedError(link.device_id, f"making {HOME}", status, said or line or "")


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
