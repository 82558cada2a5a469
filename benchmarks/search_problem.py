"""A search that needs no device: costs by arithmetic, and a quality that is a formula with everything that makes layouts hard.

`Machine` reads every weight and state once a token (decode) or computes every product (prefill). `quality` has kinds that saturate,
gaps that should be even, neighbours that should differ, places that suit some kinds, and FFNs that matter most in the middle; `additive`
is a sum over layers, for which the optimum can be certified.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from archsearch.budgets import Metric, parse_budget
from archsearch.search.feasible import CostModel
from archsearch.search.layouts import Layouts
from archsearch.search.table import CostArrays
from archsearch.space import Space
from archsearch.spec import ArchSpec
from operators.costs import block_costs, head_weights, weight_bytes
from operators.specs import BlockSpec, ModelDims

DECODE, PREFILL, MEMORY = Metric("decode_ms", 4096), Metric("prefill_ms", 512), Metric("memory_mb", 4096)
BYTES_PER_S, FLOPS_PER_S, CALL_S = 12e9, 120e9, 12e-6


class Machine:
    """A cost table by arithmetic: 12 GB/s, 120 GFLOP/s, 12 µs a block."""

    device = "arithmetic"

    def metrics(self) -> tuple[Metric, ...]:
        return (DECODE, PREFILL, MEMORY, Metric("parameters"))

    def additive(self, block: BlockSpec, dims: ModelDims, metric: Metric) -> float:
        costs = block_costs(block, dims)
        weights, states = costs.weight_bytes("int4"), costs.state_bytes(batch=1, cache=(metric.at or 0) + 1)
        match metric.kind:
            case "decode_ms":
                return ((weights + states) / BYTES_PER_S + CALL_S) * 1e3
            case "prefill_ms":
                return (costs.flops(tokens=metric.at or 0, context=0) / FLOPS_PER_S + CALL_S) * 1e3
            case "memory_mb":
                return (weights + states) / 1e6
            case _:
                return float(costs.parameters)

    def law(self, metric: Metric) -> None:
        """None: a byte costs the same in every layout."""

    def constant(self, spec: ArchSpec, metric: Metric) -> float:
        weights = head_weights(spec.dims, spec.vocab_size, spec.tie_embeddings)
        size = sum(weight_bytes(weight, "int4") for weight in weights)
        match metric.kind:
            case "decode_ms":
                return size / BYTES_PER_S * 1e3
            case "prefill_ms":
                return 2 * weights[0].size / FLOPS_PER_S * 1e3
            case "memory_mb":
                return 30 + size / 1e6
            case _:
                return float(sum(weight.size for weight in weights))


def space_of(layers: int) -> Space:
    """8 operators, 4 FFN widths, 5 hidden sizes, 3 depths: 10^25 layouts at 16 layers, 10^49 at 32."""
    attention = {"heads": 16, "head_dim": 64}
    return Space.from_dict(
        {
            "model": {"hidden_size": [512, 640, 768, 896, 1024], "vocab_size": 65536, "layers": [layers * 3 // 4, layers * 7 // 8, layers]},
            "operators": [
                {"kind": "short_conv", "kernel_size": [3, 7]},
                {"kind": "gla", "heads": 4},
                {"kind": "swa", "kv_heads": 4, "window": [256, 1024], **attention},
                {"kind": "gqa", "kv_heads": [2, 4, 8], **attention},
            ],
            "ffn": {"intermediate_size": [1536, 2560, 3584, 4608]},
            "workloads": {"prefill": [512], "decode": [4096]},
        }
    )


def arrays_of(space: Space) -> CostArrays:
    """Three budgets that some 10 % of random layouts keep, whatever the depth."""
    table: Any = Machine()
    free = CostModel(space, table, Machine().metrics(), ())
    middle = CostArrays(free, Machine().metrics())
    sample = middle.values(middle.codec.random(4000, np.random.default_rng(0)))
    shares = {DECODE: 0.2, PREFILL: 0.25, MEMORY: 0.2}
    limits = {metric: np.quantile(sample[:, middle.metrics.index(metric)], share) for metric, share in shares.items()}
    budgets = tuple(parse_budget(f"{metric}<={limit:.5g}") for metric, limit in limits.items())
    return CostArrays(CostModel(space, table, Machine().metrics(), budgets), Machine().metrics())


#        conv3 conv7  gla  swa256 swa1024 gqa2 gqa4 gqa8
GAIN = [0.70, 0.78, 0.80, 0.75, 0.95, 1.00, 1.10, 1.20]
SCALE = [4.0, 4.0, 2.5, 2.0, 2.0, 1.6, 1.6, 1.6]
GLOBAL, CONV = 5, 2


class Quality:
    """Larger is better; between about 0 and 5. Scales with depth, so that 32 layers are no easier than 16."""

    def __init__(self, arrays: CostArrays) -> None:
        space = arrays.model.space
        self.blocks, self.ffns, self.deepest = arrays.codec.blocks, len(space.ffns), arrays.codec.deepest
        self.width = np.array([ffn.intermediate_size for ffn in space.ffns]) / 4608
        self.size = np.array(space.hidden_sizes) / 1024
        self.gain, self.scale = np.array(GAIN), np.array(SCALE) * self.deepest / 16

    def __call__(self, layouts: Layouts) -> np.ndarray:
        codes, here = layouts.codes, layouts.codes < self.blocks
        depth = here.sum(axis=1)
        operator = np.where(here, codes // self.ffns, -1)
        counts = np.stack([(operator == o).sum(axis=1) for o in range(len(GAIN))], axis=1)
        mixing = (self.gain * (1 - np.exp(-counts / self.scale))).sum(axis=1)
        place = (np.arange(self.deepest) + 0.5) / depth[:, None]
        ffn = np.where(here, np.log(self.width[codes % self.ffns]) * (1 - 1.2 * (place - 0.5) ** 2), 0).sum(axis=1) / depth
        capacity = 0.9 * ffn + 0.9 * np.log(self.size[layouts.hidden]) + 0.6 * np.log(depth / self.deepest)
        looks = (operator >= GLOBAL) & here
        n = looks.sum(axis=1)
        ideal = np.where(here, place * n[:, None], 0)
        uneven = np.where(here, (np.cumsum(looks, axis=1) - 0.5 * looks - ideal) ** 2, 0).sum(axis=1) / depth
        centre = np.abs((place * looks).sum(axis=1) / np.maximum(n, 1) - 0.55) * (n > 0)
        same = ((operator[:, 1:] == operator[:, :-1]) & (operator[:, 1:] >= CONV)).sum(axis=1) / depth
        after_conv = ((operator[:, 1:] >= GLOBAL) & (operator[:, :-1] < CONV) & (operator[:, :-1] >= 0)).sum(axis=1) / depth
        first = (operator[:, 0] < CONV) * 0.08
        return np.asarray(mixing + capacity - 0.25 * uneven - 0.5 * centre - 0.6 * same + 0.8 * after_conv + first)


def additive_quality(arrays: CostArrays) -> np.ndarray:
    """What each block is worth, (hidden sizes, B): for the certificate."""
    space = arrays.model.space
    widths = np.array([ffn.intermediate_size for ffn in space.ffns]) / 4608
    block = (0.1 * np.array(GAIN)[:, None] + 0.12 * np.sqrt(widths)[None, :]).ravel()
    return np.sqrt(np.array(space.hidden_sizes) / 1024)[:, None] * block
