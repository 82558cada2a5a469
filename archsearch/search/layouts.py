"""Many layouts at once as integers, for searches that look at hundreds of thousands of them.

Shapes: n layouts, L layers of the deepest, B blocks of the space (operator-major: block = operator * F + FFN), F FFN widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from archsearch.space import Space
from archsearch.spec import ArchSpec


@dataclass(frozen=True, eq=False)
class Layouts:
    """`hidden` (n,): index of the hidden size. `codes` (n, L): index of each layer's block; B where a shallow layout has no layer."""

    hidden: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, rows: np.ndarray | slice) -> Layouts:
        return Layouts(self.hidden[rows], self.codes[rows])

    def joined(self, *others: Layouts) -> Layouts:
        every = (self, *others)
        return Layouts(np.concatenate([one.hidden for one in every]), np.concatenate([one.codes for one in every]))


@dataclass(frozen=True)
class Codec:
    """Between layouts as integers and architectures."""

    space: Space

    @property
    def blocks(self) -> int:
        return len(self.space.operators) * len(self.space.ffns)

    @property
    def deepest(self) -> int:
        return max(self.space.depths)

    @cached_property
    def _index(self) -> dict[object, int]:
        return {block: i for i, block in enumerate(self.space.blocks)}

    def encode(self, specs: Sequence[ArchSpec]) -> Layouts:
        """Architectures of the space as integers.

        Raises:
            ValueError: one is not of this space.
        """
        codes = np.full((len(specs), self.deepest), self.blocks, dtype=np.int64)
        hidden = np.zeros(len(specs), dtype=np.int64)
        for i, spec in enumerate(specs):
            if spec.hidden_size not in self.space.hidden_sizes or len(spec.layers) not in self.space.depths:
                raise ValueError(f"{spec.name}: {len(spec.layers)} layers of {spec.hidden_size} channels are not in this space")
            if not set(spec.layers) <= set(self._index):
                raise ValueError(f"{spec.name}: has blocks that are not in this space")
            hidden[i] = self.space.hidden_sizes.index(spec.hidden_size)
            codes[i, : len(spec.layers)] = [self._index[block] for block in spec.layers]
        return Layouts(hidden, codes)

    def decode(self, layouts: Layouts) -> list[ArchSpec]:
        blocks, sizes = self.space.blocks, self.space.hidden_sizes
        return [
            self.space.spec([blocks[code] for code in codes if code < self.blocks], hidden_size=sizes[hidden])
            for hidden, codes in zip(layouts.hidden, layouts.codes, strict=True)
        ]

    def depth(self, layouts: Layouts) -> np.ndarray:
        """Layers of each layout, (n,)."""
        return np.asarray((layouts.codes < self.blocks).sum(axis=1))

    def keys(self, layouts: Layouts) -> list[bytes]:
        """Equal for equal layouts."""
        whole = np.column_stack([layouts.hidden, layouts.codes]).astype(np.int16)
        return [row.tobytes() for row in whole]

    def random(self, count: int, rng: np.random.Generator) -> Layouts:
        """Layouts of two or three operators at random: what is mixed from all of them evenly is hardly ever good."""
        operators, ffns = len(self.space.operators), len(self.space.ffns)
        depth = np.array(self.space.depths)[rng.integers(len(self.space.depths), size=count)]
        palette = rng.integers(operators, size=(count, 3))
        # One of the three takes most layers, and one FFN width most of them.
        which = rng.choice(3, size=(count, self.deepest), p=[0.6, 0.25, 0.15])
        operator = np.take_along_axis(palette, which, axis=1)
        width = rng.integers(ffns, size=(count, 2))
        ffn = np.take_along_axis(width, (rng.random((count, self.deepest)) < 0.2).astype(int), axis=1)
        codes = np.where(np.arange(self.deepest) < depth[:, None], operator * ffns + ffn, self.blocks)
        return Layouts(rng.integers(len(self.space.hidden_sizes), size=count), codes)
