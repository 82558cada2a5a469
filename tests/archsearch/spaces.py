"""A search space small enough for tests."""

from __future__ import annotations

from typing import Any

MEASURED = 3 + 2 * 5 + 1
"""Latencies that a profile of `small()` measures: prefill of two blocks and of embedding with head; decode at two contexts, two lengths
of each block's chain and the head; and at the lesser context a third length of one block."""

MEMORY = 2 * 5 + 1
"""Peaks of memory: while decoding and in prefill, a single copy and a chain of two blocks, and the head; in prefill one of each block."""


def small(**changes: Any) -> dict[str, Any]:
    """Two operators, one FFN width, two layers of 64 channels; `changes` replace whole tables."""
    return {
        "model": {"name": "small", "hidden_size": 64, "vocab_size": 512, "layers": 2},
        "operators": [
            {"kind": "short_conv", "kernel_size": 3},
            {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16},
        ],
        "ffn": {"intermediate_size": 96},
        "workloads": {"prefill": [16], "decode": [32, 64]},
        "measure": {"precision": "fp32", "passes": 2, "rounds": 2, "min_time_ms": 5},
    } | changes
