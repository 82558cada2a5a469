"""Outputs against the float64 reference, before anything is timed (rule 8 of measuring).

The tolerances are those of rounding. fp32: up to 2e-6 is seen. In int8 and int4 the reference computes with the rounded weights,
and what remains is that the runtime's products round their inputs to int8, which no two kernels do alike: by the weights' blocks on
x86 (there one product agrees to 2e-7 with a reference that does the same, tests/operators/test_quantize.py), by rows on ARM.
So the reference is computed once as it is and once with its inputs rounded in either way, and the larger of the two errors, about
1.5 % for one block, is what rounding may cost. A dropped norm, a window off by one or a stale cache costs several times as much
(tests/operators/test_graph_check.py shows it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from operators import reference
from operators.builtin import SLACK
from operators.costs import model_weights
from operators.graph.model import chain_weights
from operators.graph.run import Runner
from operators.quantize import dequantized, with_rounded_inputs
from operators.specs import BlockSpec, GraphError, ModelDims, Precision, WeightSpec

FP32_TOLERANCE = 1e-5
"""Largest accepted RMS error, relative to the RMS of what is compared, from fp32 rounding alone."""
ROUNDING_MARGIN = 1.5
"""How much more than the reference's own error with rounded inputs is accepted; 0.8 to 1.2 times is seen."""
PREFILL, DECODE = 12, 6
LONGEST_WINDOW = 512
"""Windows up to this are filled, so that decode evicts; the reference takes seconds for longer ones."""

Weights = Mapping[str, np.ndarray]
Reference = Callable[[Weights], np.ndarray]


def check_blocks(
    path: Path,
    blocks: Sequence[BlockSpec],
    dims: ModelDims,
    weights: Weights,
    *,
    precision: Precision,
    seed: int = 0,
    prefill: int | None = None,
    decode: int = DECODE,
    batch: int = 1,
) -> float:
    """Run a chain's prefill and some decode steps and compare with the reference on the same (rounded) weights.

    Args:
        prefill: None for a few tokens, or as many as overflow the longest window's buffer.

    Returns:
        The RMS error of what the blocks add to their input, relative to its RMS.

    Raises:
        GraphError: it is above what rounding costs, or not a number.
    """
    prefill = probe_length(blocks) if prefill is None else prefill
    x_BTD = np.random.default_rng(seed).standard_normal((batch, prefill + decode, dims.hidden_size)).astype(np.float32)

    def added(weights: Weights) -> np.ndarray:
        y_BTD = x_BTD.astype(np.float64)
        for i, block in enumerate(blocks):
            y_BTD, _ = reference.block(block, dims, reference.part(weights, f"layers.{i}."), y_BTD)
        return y_BTD - x_BTD

    found = run_in_steps(Runner(path), x_BTD, prefill) - x_BTD
    return _compare(path, found, added, weights, chain_weights(blocks, dims), precision)


def check_model(
    path: Path,
    blocks: Sequence[BlockSpec],
    dims: ModelDims,
    weights: Weights,
    *,
    vocab_size: int,
    tie_embeddings: bool,
    precision: Precision,
    seed: int = 0,
    prefill: int | None = None,
    decode: int = DECODE,
    batch: int = 1,
) -> float:
    """As `check_blocks`, for the logits of a whole model, or of embedding and head alone.

    Raises:
        GraphError: the error is above what rounding costs, or not a number.
    """
    prefill = probe_length(blocks) if prefill is None else prefill
    ids_BT = np.random.default_rng(seed).integers(0, vocab_size, (batch, prefill + decode))
    found = run_in_steps(Runner(path), ids_BT, prefill)
    shown = found.shape[1]  # a graph that gives the last position's logits gives one row for the prefill

    def logits(weights: Weights) -> np.ndarray:
        return reference.model(blocks, dims, weights, ids_BT)[0][:, -shown:]

    names = model_weights(blocks, dims, vocab_size=vocab_size, tie_embeddings=tie_embeddings)
    return _compare(path, found, logits, weights, names, precision)


def probe_length(blocks: Sequence[BlockSpec]) -> int:
    """Tokens of prefill: a few, or as many as overflow the longest window's buffer, so that it is moved once more while `DECODE` tokens
    follow (a buffer with `slack` rows beyond its window is moved every `slack + 1` tokens)."""
    windows = [min(int(getattr(block.operator, "window", 0)), LONGEST_WINDOW) for block in blocks]
    return max([PREFILL, *(window + window // SLACK + max(4, window // SLACK - 2) for window in windows)])


def run_in_steps(runner: Runner, values: np.ndarray, prefill: int) -> np.ndarray:
    """Outputs of a prefill and of one step for each token that follows."""
    runner.start(batch=len(values), capacity=values.shape[1])
    parts = [runner.step(values[:, :prefill])] + [runner.step(values[:, t : t + 1]) for t in range(prefill, values.shape[1])]
    return np.concatenate(parts, axis=1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """RMS of the difference over RMS of what was expected."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def _compare(
    path: Path, found: np.ndarray, compute: Reference, weights: Weights, specs: Sequence[WeightSpec], precision: Precision
) -> float:
    own = dequantized({spec.name: np.asarray(weights[spec.name]) for spec in specs}, specs, precision)
    expected = compute(own)
    error, tolerance = relative_error(found, expected), FP32_TOLERANCE
    if precision != "fp32":
        rounded = [compute(with_rounded_inputs(own, specs, blocks)) for blocks in (precision, None)]
        tolerance += ROUNDING_MARGIN * max(relative_error(values, expected) for values in rounded)
    if not error <= tolerance:
        raise GraphError(
            f"{path.name} computes something else than its reference: relative error {error:.2g}, rounding explains {tolerance:.2g}; "
            "it must not be timed, please report it with the spec"
        )
    return error
