"""Outputs against the float64 reference, before anything is timed (rule 8 of measuring)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from operators import reference
from operators.costs import block_weights
from operators.graph.run import Runner
from operators.quantize import dequantized
from operators.specs import BlockSpec, GraphError, ModelDims, Precision

TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "int8": 0.03, "int4": 0.03}
"""Largest accepted RMS error of what the blocks add to their input, relative to its RMS.

fp32 is rounding: about 4e-7 is seen. In int8 and int4 the reference computes with the rounded weights, and what remains is the
runtime's rounding of activations to int8 in blocks of 32: an error of about amax/127/sqrt(12), 0.6 % of a normal block's RMS, in
each of four products in a row, of which 1.5 % is seen. A dropped norm, a window off by one or a stale cache errs by 10 % and more
(tests/operators/test_graph.py shows it).
"""

PREFILL, DECODE = 12, 6


def check_blocks(
    path: Path,
    blocks: Sequence[BlockSpec],
    dims: ModelDims,
    weights: Mapping[str, np.ndarray],
    *,
    precision: Precision,
    seed: int = 0,
    prefill: int = PREFILL,
    decode: int = DECODE,
    batch: int = 1,
) -> float:
    """Run a chain's prefill and some decode steps and compare with the reference on the same (rounded) weights.

    Returns:
        The relative RMS error of what the blocks add to their input.

    Raises:
        GraphError: it is above the tolerance of the precision, or not a number.
    """
    x_BTD = np.random.default_rng(seed).standard_normal((batch, prefill + decode, dims.hidden_size)).astype(np.float32)
    runner = Runner(path)
    runner.start(batch=batch, capacity=prefill + decode)
    parts = [runner.step(x_BTD[:, :prefill])] + [runner.step(x_BTD[:, t : t + 1]) for t in range(prefill, prefill + decode)]
    expected = x_BTD.astype(np.float64)
    for i, block in enumerate(blocks):
        own = {name: np.asarray(weights[f"layers.{i}.{name}"]) for name in (spec.name for spec in block_weights(block, dims))}
        expected, _ = reference.block(block, dims, dequantized(own, block_weights(block, dims), precision), expected)
    error = relative_error(np.concatenate(parts, axis=1) - x_BTD, expected - x_BTD)
    if not error <= TOLERANCE[precision]:
        raise GraphError(f"{path.name} computes something else than its reference: relative error {error:.2g}, at most {TOLERANCE[precision]:g} is right")
    return error


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of what was expected."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
