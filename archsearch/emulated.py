"""Times taken under emulation say nothing about any device: they are kept, marked, and refused wherever a number is wanted.

A device is emulated when it says so itself (`DeviceInfo.extra["emulated"]`): Android's emulator, or programs of one processor run on
another by qemu. `archsearch --allow-emulated COMMAND` takes such times all the same, to try a chain of commands without a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from archsearch.errors import InputError

FLAG = "--allow-emulated"
_allowed: ContextVar[bool] = ContextVar("emulated times are taken as numbers", default=False)


class EmulatedTimesError(InputError):
    """Times of an emulated device were asked for as numbers."""


@contextmanager
def allowed() -> Iterator[None]:
    """Within the block, times of emulated devices are taken as numbers."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def is_emulated(extra: Mapping[str, Any]) -> bool:
    """Whether a device's `extra` says that it is."""
    return bool(extra.get("emulated"))


def usable(extra: Mapping[str, Any]) -> bool:
    """Whether a device's times may be taken as numbers."""
    return _allowed.get() or not is_emulated(extra)


def refuse(device_id: str, extra: Mapping[str, Any]) -> None:
    """Stop before an emulated device's times are taken as numbers.

    Raises:
        EmulatedTimesError: they would be.
    """
    if not usable(extra):
        raise EmulatedTimesError(
            f"{device_id} is emulated: its times say nothing about a phone; "
            f"`archsearch {FLAG} ...` (before the command) takes them as numbers all the same"
        )
