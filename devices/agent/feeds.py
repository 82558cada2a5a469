"""Input tensors from their descriptions, bit by bit the same in every agent; docs/measuring.md gives the rule for other languages."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from devices.plan import Feed

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
CHUNK = 1 << 16
"""Elements made at a time: they stay in the cache, and peak memory is the tensor's own."""
LANES_STD = math.sqrt((2**32 - 1) / 3)
"""Standard deviation of the sum of four uniform 16-bit numbers."""
LANES_MEAN = 2 * 65535


def content(feed: Feed, seed: int) -> np.ndarray:
    """The tensor that `feed` describes.

    Raises:
        TypeError: numpy has no such type.
    """
    values = np.zeros(feed.shape, feed.dtype)
    match feed.fill:
        case "constant":
            values.fill(feed.value)
        case "normal":
            flat = values.reshape(-1)
            for span, bits in _bits(feed, seed):
                lanes = sum(((bits >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48))
                flat[span] = (lanes - LANES_MEAN) * (feed.scale / LANES_STD)
        case "integers":
            flat = values.reshape(-1)
            for span, bits in _bits(feed, seed):
                flat[span] = ((bits >> np.uint64(32)) * np.uint64(feed.high)) >> np.uint64(32)
    return values


def _bits(feed: Feed, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """64 random bits for each element, chunk by chunk: splitmix64 over the index, started from seed and name (FNV-1a)."""
    key = 0xCBF29CE484222325
    for byte in feed.name.encode():
        key = ((key ^ byte) * 0x100000001B3) & MASK
    key ^= seed & MASK
    for first in range(0, math.prod(feed.shape), CHUNK):
        last = min(first + CHUNK, math.prod(feed.shape))
        z = np.arange(first + 1, last + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        yield slice(first, last), z ^ (z >> np.uint64(31))
