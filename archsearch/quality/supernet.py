"""T2: one network that holds every block choice of a space at every depth, trained on text with one random layout a step.

Its layouts share weights, so one training scores any number of them (single-path one-shot, arXiv 1904.00420). Only for text: on
recall such networks stay on the plateau and rank what cannot recall first (docs/quality.md). Scores are an order, no more: they
are far above what the same layout reaches alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from archsearch.model import LanguageModel
from archsearch.quality.micro import LEARNING_RATES, WARMUP, build, corpus_bytes, windows
from archsearch.quality.proxy import narrow
from archsearch.quality.tasks import HELD_OUT_WINDOWS, TEXT_BATCH, TEXT_TOKENS
from archsearch.spec import ArchSpec
from operators.specs import BlockSpec, FfnSpec

SCORED_WINDOWS = HELD_OUT_WINDOWS // 2
CLIP = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SupernetEvent:
    """Training goes on: `step` of `steps`, the loss in bits a byte."""

    step: int
    steps: int
    bits_per_byte: float


class TextSupernet:
    """Layouts of one depth over a fixed set of blocks, with shared weights.

    Args:
        layouts: what is to be scored; each layer may be any block that any of them has at that depth. All are trained narrow.
        context: see `narrow`.
        one_ffn: give all layers the widest FFN: layouts of equal size have FFNs of their own, which would share no weights.

    Raises:
        ValueError: the layouts differ in depth.
    """

    def __init__(self, layouts: Sequence[ArchSpec], *, context: int, seed: int = 0, one_ffn: bool = False) -> None:
        self.seed, self.context = seed, context
        self._ffn: FfnSpec | None = None
        copies = [self._copy(spec) for spec in layouts]
        if one_ffn:
            self._ffn = max((block.ffn for copy in copies for block in copy.layers), key=lambda ffn: ffn.intermediate_size)
            copies = [self._copy(spec) for spec in layouts]
        depths = {len(copy.layers) for copy in copies}
        if len(depths) != 1:
            raise ValueError(f"a supernet has one depth, not {sorted(depths)}")
        self.depth = depths.pop()
        self.choices = [list(dict.fromkeys(copy.layers[i] for copy in copies)) for i in range(self.depth)]
        self._blocks: list[dict[BlockSpec, nn.Module]] = [{} for _ in range(self.depth)]
        for number in range(max(map(len, self.choices))):
            layers = tuple(options[min(number, len(options) - 1)] for options in self.choices)
            model = build(replace(copies[0], layers=layers), seed + number)
            for i, block in enumerate(layers):
                self._blocks[i].setdefault(block, model.layers[i])
            if number == 0:
                self._model = model
        self.seconds = 0.0

    def _copy(self, spec: ArchSpec) -> ArchSpec:
        copy = narrow(spec, vocab_size=256, tokens=TEXT_TOKENS, context=self.context)
        if self._ffn is None:
            return copy
        return replace(copy, layers=tuple(replace(block, ffn=self._ffn) for block in copy.layers))

    @property
    def paths(self) -> int:
        """Layouts that it holds."""
        return math.prod(map(len, self.choices))

    def _take(self, layers: Sequence[BlockSpec]) -> LanguageModel:
        for i, block in enumerate(layers):
            self._model.layers[i] = self._blocks[i][block]
        return self._model

    def train(self, steps: int) -> Iterator[SupernetEvent]:
        """One uniformly drawn path a step; each block's weights learn only when they are drawn."""
        training, _ = corpus_bytes()
        generator = np.random.default_rng(self.seed + 1)
        blocks = itertools.chain.from_iterable(options.values() for options in self._blocks)
        own = [p for name, p in self._model.named_parameters() if not name.startswith("layers.")]
        parameters = [*own, *itertools.chain.from_iterable(block.parameters() for block in blocks)]
        peak = LEARNING_RATES["text"] / 2
        optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
        begun = time.process_time()
        mean = 0.0
        for step in range(1, steps + 1):
            model = self._take([options[generator.integers(len(options))] for options in self.choices])
            ids = windows(training, generator.integers(0, len(training) - TEXT_TOKENS - 1, TEXT_BATCH))
            rate = peak * min(1.0, step / WARMUP) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            optimizer.zero_grad(set_to_none=True)  # what was not drawn must not be moved by its momentum
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], CLIP)
            optimizer.step()
            mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
            if step % 50 == 0 or step == steps:
                self.seconds = time.process_time() - begun
                yield SupernetEvent(step=step, steps=steps, bits_per_byte=mean / math.log(2))

    def score(self, spec: ArchSpec) -> float:
        """Held-out bits a byte of a layout with the shared weights.

        Raises:
            KeyError: it has a block that the supernet does not hold at that depth.
        """
        copy = self._copy(spec)
        _, held_out = corpus_bytes()
        ids = windows(held_out, np.linspace(0, len(held_out) - TEXT_TOKENS - 1, SCORED_WINDOWS).astype(int))
        with torch.inference_mode():
            return float(self._take(copy.layers).loss(ids[:, :-1], ids[:, 1:])) / math.log(2)
