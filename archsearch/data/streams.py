"""Token streams: memory-mapped shards that read as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class Stream(Protocol):
    """What batches are cut from: an array, or something that is sliced like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> Any: ...


class TokenStream:
    """Shards (or whole streams) one after the other. Slices copy; `numpy.asarray` reads it all."""

    def __init__(self, shards: Sequence[Stream], dtype: npt.DTypeLike) -> None:
        self.shards = tuple(shard for shard in shards if len(shard))
        self.dtype = np.dtype(dtype)
        self._ends = np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, where: slice) -> Tokens:
        start, stop, stride = where.indices(len(self))
        if stride != 1:
            raise ValueError("token streams are read forwards, token by token")
        parts = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[number]) - len(self.shards[number])
            parts.append(self.shards[number][start - begin : stop - begin])
            start = int(self._ends[number])
            number += 1
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)
