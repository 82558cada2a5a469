"""A profile of several devices: this machine first and alone, then phones side by side, a worker for each.

Workers share nothing but the run directory: models are written under a lock, and every worker has its own connection to the store.
A phone that fails does not stop the others.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from archsearch.errors import InputError, RunError
from archsearch.profile import ProfileEvent, profile
from archsearch.space import Space
from devices.base import Device

Told = tuple[str, ProfileEvent | BaseException | None]
"""A device's name with what it did, why it failed, or None when it has ended."""
LEAVING_S = 5.0
"""When the profile is abandoned: for workers that are between two events. An agent ends with its worker, at the latest with the process."""


def refuse_twins(devices: Mapping[str, Device]) -> None:
    """Stop when two names are one device, which would measure itself twice at once.

    Raises:
        InputError: they are; names both.
    """
    seen: dict[str, str] = {}
    for device_id, device in devices.items():
        other = seen.setdefault(device.info.fingerprint, device_id)
        if other != device_id:
            raise InputError(f"{other} and {device_id} are the same device ({device.info.name}): name it once")


def profile_all(
    space: Space, run_dir: Path, devices: Mapping[str, Device], *, retry_failed: bool = False
) -> Iterator[tuple[str, ProfileEvent]]:
    """Profile every device; events come as they happen, with the device's name.

    Raises:
        InputError: two names are one device.
        RunError: several devices failed; all others are measured. Of one alone, its own error.
    """
    refuse_twins(devices)
    failed: list[Exception] = []
    for device_id in (name for name in devices if not name.startswith("adb:")):
        for event in profile(space, run_dir, devices[device_id], retry_failed=retry_failed):
            yield device_id, event
    phones = {name: device for name, device in devices.items() if name.startswith("adb:")}
    told: queue.Queue[Told] = queue.Queue()
    stop, writing = threading.Event(), threading.Lock()
    workers = [
        threading.Thread(target=_work, args=(name, device, space, run_dir, retry_failed, told, stop, writing), daemon=True)
        for name, device in phones.items()
    ]
    for worker in workers:
        worker.start()
    left = len(workers)
    try:
        while left:
            device_id, what = told.get()
            match what:
                case ProfileEvent():
                    yield device_id, what
                case None:
                    left -= 1
                case Exception():
                    failed.append(what)
                case _:
                    raise what
    finally:
        stop.set()
        for worker in workers:
            worker.join(LEAVING_S / len(workers))
    if len(failed) == 1:
        raise failed[0]
    if failed:
        raise RunError("; ".join(map(str, failed))) from failed[0]


def _work(
    device_id: str,
    device: Device,
    space: Space,
    run_dir: Path,
    retry_failed: bool,
    told: queue.Queue[Told],
    stop: threading.Event,
    writing: threading.Lock,
) -> None:
    events = profile(space, run_dir, device, retry_failed=retry_failed)
    try:
        with writing:  # the first worker writes the models, the others find them
            for event in events:
                told.put((device_id, event))
                if event.stage != "export" or event.done == event.total or stop.is_set():
                    break
        for event in events:
            told.put((device_id, event))
            if stop.is_set():
                break
    except BaseException as error:
        told.put((device_id, error))
    finally:
        events.close()  # type: ignore[attr-defined]  # a generator
        told.put((device_id, None))
