"""What is changed in a layout to get another: a layer's operator, two layers' places, FFN widths, a kind, the shape; or halves of two.

Every move takes rows of layouts and changes all of them at once; shapes as in `archsearch.search.layouts`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from archsearch.search.layouts import Codec, Layouts

WEIGHTS = {"retype": 4, "swap": 3, "ffn": 3, "ffn_run": 2, "kind": 2, "hidden": 1, "depth": 1, "cross": 3}
"""How often each move is made. Measured on 16 and 32 layers (benchmarks/search_front.py); the result hardly depends on them."""


@dataclass
class Moves:
    """Random changes, in the terms of the domain."""

    codec: Codec
    rng: np.random.Generator

    def __post_init__(self) -> None:
        space = self.codec.space
        self.ffns, self.operators = len(space.ffns), len(space.operators)
        possible = {
            "retype": self.operators > 1,
            "ffn": self.ffns > 1,
            "ffn_run": self.ffns > 1,
            "kind": self.operators > 1,
            "hidden": len(space.hidden_sizes) > 1,
            "depth": len(space.depths) > 1,
        }
        self.names = [name for name in WEIGHTS if possible.get(name, True)]
        weights = np.array([WEIGHTS[name] for name in self.names], dtype=float)
        self.shares = np.cumsum(weights / weights.sum())
        # A step goes to the next width, in whatever order the file gives them.
        self.order = np.argsort([ffn.intermediate_size for ffn in space.ffns])
        self.rank = np.argsort(self.order)

    def children(self, parents: Layouts, mates: Layouts) -> Layouts:
        """One child of each parent, by one to three moves; `mates` are what halves are taken from."""
        hidden, codes = parents.hidden.copy(), parents.codes.copy()
        for again in (1.0, 0.5, 0.25):
            which = np.searchsorted(self.shares, self.rng.random(len(hidden)))
            which[self.rng.random(len(hidden)) >= again] = len(self.names)
            for i, name in enumerate(self.names):
                rows = np.flatnonzero(which == i)
                if len(rows):
                    child = getattr(self, f"_{name}")(Layouts(hidden[rows], codes[rows]), mates[rows])
                    hidden[rows], codes[rows] = child.hidden, child.codes
        return Layouts(hidden, codes)

    def _position(self, layouts: Layouts) -> np.ndarray:
        """A layer of each, (n,)."""
        return np.asarray(self.rng.random(len(layouts)) * self.codec.depth(layouts), dtype=np.int64)

    def _run(self, layouts: Layouts) -> np.ndarray:
        """Some neighbouring layers of each, (n, L) of bool."""
        ends = np.sort(np.stack([self._position(layouts), self._position(layouts)]), axis=0)
        layer = np.arange(layouts.codes.shape[1])
        return np.asarray((layer >= ends[0][:, None]) & (layer <= ends[1][:, None]))

    def _retype(self, layouts: Layouts, _: Layouts) -> Layouts:
        rows, at = np.arange(len(layouts)), self._position(layouts)
        operator = self.rng.integers(self.operators, size=len(layouts))
        layouts.codes[rows, at] = operator * self.ffns + layouts.codes[rows, at] % self.ffns
        return layouts

    def _swap(self, layouts: Layouts, _: Layouts) -> Layouts:
        rows, a, b = np.arange(len(layouts)), self._position(layouts), self._position(layouts)
        layouts.codes[rows, a], layouts.codes[rows, b] = layouts.codes[rows, b], layouts.codes[rows, a]
        return layouts

    def _stepped(self, codes: np.ndarray, step: np.ndarray) -> np.ndarray:
        """FFNs some widths wider or narrower."""
        rank = np.clip(self.rank[codes % self.ffns] + step, 0, self.ffns - 1)
        return np.asarray(codes // self.ffns * self.ffns + self.order[rank])

    def step_ffn(self, codes: np.ndarray, rows: np.ndarray, step: np.ndarray) -> bool:
        """In each of these rows, one layer's FFN wider (1) or narrower (-1), in place; False where no layer can be changed."""
        chosen = codes[rows]
        rank = self.rank[chosen % self.ffns] + step[:, None]
        possible = (chosen < self.codec.blocks) & (rank >= 0) & (rank < self.ffns)
        at = np.where(possible, self.rng.random(chosen.shape), -1.0).argmax(axis=1)
        able = possible[np.arange(len(rows)), at]
        codes[rows[able], at[able]] = self._stepped(chosen[able, at[able]], step[able])
        return bool(able.any())

    def _ffn(self, layouts: Layouts, _: Layouts) -> Layouts:
        rows, at = np.arange(len(layouts)), self._position(layouts)
        step = self.rng.choice([-1, 1], size=len(layouts))
        layouts.codes[rows, at] = self._stepped(layouts.codes[rows, at], step)
        return layouts

    def _ffn_run(self, layouts: Layouts, _: Layouts) -> Layouts:
        step = self.rng.choice([-1, 1], size=(len(layouts), 1))
        changed = self._run(layouts) & (layouts.codes < self.codec.blocks)
        return Layouts(layouts.hidden, np.where(changed, self._stepped(layouts.codes, step), layouts.codes))

    def _kind(self, layouts: Layouts, _: Layouts) -> Layouts:
        """All layers of one kind become another."""
        rows = np.arange(len(layouts))
        old = layouts.codes[rows, self._position(layouts)] // self.ffns
        new = self.rng.integers(self.operators, size=len(layouts))
        changed = (layouts.codes // self.ffns == old[:, None]) & (layouts.codes < self.codec.blocks)
        return Layouts(layouts.hidden, np.where(changed, new[:, None] * self.ffns + layouts.codes % self.ffns, layouts.codes))

    def _hidden(self, layouts: Layouts, _: Layouts) -> Layouts:
        return Layouts(self.rng.integers(len(self.codec.space.hidden_sizes), size=len(layouts)), layouts.codes)

    def _depth(self, layouts: Layouts, _: Layouts) -> Layouts:
        """Another depth; layers are repeated or left out evenly, so that the pattern stays."""
        depths = np.array(self.codec.space.depths)
        wanted = depths[self.rng.integers(len(depths), size=len(layouts))]
        return Layouts(layouts.hidden, self._stretched(layouts, wanted, self.rng.random(len(layouts))))

    def _stretched(self, layouts: Layouts, depth: np.ndarray, phase: np.ndarray) -> np.ndarray:
        layer, now = np.arange(layouts.codes.shape[1]), self.codec.depth(layouts)
        source = ((layer + phase[:, None]) * (now / depth)[:, None]).astype(np.int64)
        codes = np.take_along_axis(layouts.codes, np.minimum(source, now[:, None] - 1), axis=1)
        return np.where(layer < depth[:, None], codes, self.codec.blocks)

    def _cross(self, layouts: Layouts, mates: Layouts) -> Layouts:
        """Some neighbouring layers are the mate's, stretched to the same depth."""
        other = self._stretched(mates, self.codec.depth(layouts), np.zeros(len(layouts)))
        return Layouts(layouts.hidden, np.where(self._run(layouts) & (layouts.codes < self.codec.blocks), other, layouts.codes))
