"""The C agent for this machine, built once for all tests of a run."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from devices.build import build
from devices.bundle import Bundle, BundleError
from devices.local import LocalDevice
from devices.recipes import Abi, glibc_recipe, host_recipe

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


@cache
def _glibc(abi: Abi) -> Bundle:
    return build(glibc_recipe(abi, Path(_place.name)), cache=Path(_place.name))


def glibc_bundle(abi: Abi) -> Bundle:
    """A bundle with its own C library, or a skipped test where none can be built (no cross compiler, no network)."""
    try:
        return _glibc(abi)
    except BundleError as reason:
        pytest.skip(str(reason))
