"""The C agent for this machine, built once for all tests of a run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from devices.build import build, host_recipe
from devices.bundle import Bundle, BundleError
from devices.local import LocalDevice

_place = tempfile.TemporaryDirectory(prefix="archsearch-agents-", ignore_cleanup_errors=True)


@cache
def host_bundle() -> Bundle:
    return build(host_recipe(), cache=Path(_place.name))


def c_bundle() -> Bundle:
    """The bundle, or a skipped test where none can be built."""
    try:
        return host_bundle()
    except BundleError as reason:
        pytest.skip(str(reason))


def c_device() -> LocalDevice:
    return LocalDevice((str(c_bundle().entry),))
