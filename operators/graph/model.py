"""Chains of blocks and whole models as ONNX files. One graph serves prefill and decode."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import TensorProto

from operators.costs import block_weights, model_weights
from operators.graph import emit
from operators.graph.builder import MICROSOFT, GraphBuilder, state_names
from operators.graph.info import GraphInfo, read_info
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, Precision, WeightSpec

FORMAT = "1"
"""Version of the metadata in the files; 1: first."""


def write_blocks(
    path: Path,
    blocks: Sequence[BlockSpec],
    dims: ModelDims,
    *,
    precision: Precision,
    max_context: int,
    weights: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> GraphInfo:
    """A chain of blocks: `hidden` [batch, tokens, D] to `hidden_out`, with every block's caches.

    Args:
        weights: named "layers.{i}...." as in a model; None draws distinct random ones for every block.
        max_context: positions for which rotary embeddings are stored.

    Raises:
        SpecError: an operator's dimensions are impossible.
        GraphError: a weight is missing or has the wrong shape.
    """
    specs = chain_weights(blocks, dims)
    weights = random_weights(specs, seed) if weights is None else weights
    with GraphBuilder(path, dims, precision, specs, weights, max_context) as graph:
        hidden = graph.add_input("hidden", TensorProto.FLOAT, ("batch", "tokens", dims.hidden_size))
        residual, delta = _layers(graph, blocks, dims, hidden)
        total = residual if delta is None else graph.node("Add", [residual, delta], hint="last_sum")
        graph.add_output(total, "hidden_out", TensorProto.FLOAT, ("batch", "tokens", dims.hidden_size))
        graph.save(_metadata("blocks", blocks, dims, precision, max_context))
    return read_info(path)


def write_model(
    path: Path,
    blocks: Sequence[BlockSpec],
    dims: ModelDims,
    *,
    vocab_size: int,
    tie_embeddings: bool,
    precision: Precision,
    max_context: int,
    weights: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    logits: Literal["last", "all"] = "last",
) -> GraphInfo:
    """A language model: `input_ids` [batch, tokens] to `logits` [batch, 1 or tokens, V]; no blocks give embedding and head alone.

    `logits="last"` computes the last position's only, as a decoder needs them; "all" is for comparing and scoring.

    Raises:
        SpecError: an operator's dimensions are impossible.
        GraphError: a weight is missing or has the wrong shape.
    """
    specs = model_weights(blocks, dims, vocab_size=vocab_size, tie_embeddings=tie_embeddings)
    weights = random_weights(specs, seed) if weights is None else weights
    with GraphBuilder(path, dims, precision, specs, weights, max_context) as graph:
        ids = graph.add_input("input_ids", TensorProto.INT64, ("batch", "tokens"))
        residual, delta = _layers(graph, blocks, dims, _embed(graph, ids))
        if logits == "last":
            residual = _last_position(graph, residual)
            delta = _last_position(graph, delta) if delta is not None else None
        normed, _ = graph.add_and_norm(residual, delta, "embedding_norm.weight")
        scores = _head(graph, normed, "embed_tokens.weight" if tie_embeddings else "lm_head.weight")
        graph.add_output(scores, "logits", TensorProto.FLOAT, ("batch", 1 if logits == "last" else "tokens", vocab_size))
        metadata = _metadata("model", blocks, dims, precision, max_context)
        metadata["archsearch.vocab_size"] = str(vocab_size)
        metadata["archsearch.logits"] = logits
        metadata["archsearch.tie_embeddings"] = str(tie_embeddings).lower()
        graph.save(metadata)
    return read_info(path)


def random_weights(specs: Iterable[WeightSpec], seed: int) -> Mapping[str, np.ndarray]:
    """Distinct random weights drawn when they are asked for, so that a large model is never in memory twice.

    Matrices have variance 1/in, which keeps activations of order one through any depth; norms are near one.
    """
    return _RandomWeights({spec.name: spec for spec in specs}, seed)


class _RandomWeights(Mapping[str, np.ndarray]):
    def __init__(self, specs: Mapping[str, WeightSpec], seed: int) -> None:
        self.specs, self.seed = specs, seed

    def __getitem__(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        generator = np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(name.encode())]))
        values = generator.random(spec.shape, np.float32)  # uniform: three times as fast as normal
        values -= 0.5
        values *= 12**0.5  # now of variance one
        if "norm" in name:
            return 1 + np.float32(0.1) * values
        if len(spec.shape) > 1:
            values *= float(np.prod(spec.shape[1:])) ** -0.5
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def chain_weights(blocks: Sequence[BlockSpec], dims: ModelDims) -> tuple[WeightSpec, ...]:
    """The weights of a chain of blocks, named "layers.{i}...." as in a model."""
    return tuple(
        WeightSpec(name=f"layers.{i}.{weight.name}", shape=weight.shape, linear=weight.linear)
        for i, block in enumerate(blocks)
        for weight in block_weights(block, dims)
    )


def _layers(graph: GraphBuilder, blocks: Sequence[BlockSpec], dims: ModelDims, hidden: str) -> tuple[str, str | None]:
    """All layers; what is handed on is (residual, pending delta), so that each addition fuses with the next norm."""
    residual, delta = hidden, None
    outputs = []
    for i, block in enumerate(blocks):
        operator = operator_for(block.operator)
        operator.check(block.operator, dims)
        states = operator.states(block.operator, dims)
        past = tuple(graph.add_state(state, i) for state in states)
        prefix = f"layers.{i}."
        normed, residual = graph.add_and_norm(residual, delta, f"{prefix}operator_norm.weight")
        delta, present = operator.emit(graph, block.operator, dims, f"{prefix}operator.", normed, past)
        outputs += [(new, state, i) for new, state in zip(present, states, strict=True)]
        normed, residual = graph.add_and_norm(residual, delta, f"{prefix}ffn_norm.weight")
        delta = emit.ffn(graph, block.ffn, f"{prefix}ffn.", normed)
    for new, state, i in outputs:
        graph.add_output(new, state_names(state.name, i)[1], TensorProto.FLOAT, state.shape)
    return residual, delta


def _embed(graph: GraphBuilder, ids: str) -> str:
    name = "embed_tokens.weight"
    if graph.precision == "fp32":
        return graph.node("Gather", [graph.constant(name, graph.weight(name)), ids], hint="embedded", axis=0)
    packed = graph.store_quantized(name, graph.weight(name))
    # The head's MatMulNBits reads the same data in the same shape [V, blocks, bytes]; only the scales need a last axis of one.
    rows = graph.node(
        "GatherBlockQuantized",
        [f"{name}.q", ids, graph.constant(f"{name}.scales3", packed.scales[..., None])],
        domain=MICROSOFT,
        hint="embedded_blocks",
        bits=packed.bits,
        block_size=packed.block,
        gather_axis=0,
        quantize_axis=2,
    )
    flat = graph.reshape(rows, (0, 0, -1))
    D, padded = graph.dims.hidden_size, packed.scales.shape[1] * packed.block
    return flat if padded == D else graph.split(flat, (D, padded - D), "embedded")[0]


def _head(graph: GraphBuilder, x: str, name: str) -> str:
    tied = name == "embed_tokens.weight"
    if not tied:
        return graph.linear(x, name)
    if graph.precision != "fp32":
        return graph.quantized_product(x, name, graph.shapes[name])
    # Gemm reads the embedding transposed, so that the file holds it once; it takes matrices only.
    product = graph.node("Gemm", [graph.reshape(x, (-1, graph.dims.hidden_size)), name], hint="head", transB=1)
    shape = graph.node("Shape", [x], hint="head_shape", start=0, end=2)
    rest = graph.constant("minus_one", np.array([-1], np.int64))
    return graph.node("Reshape", [product, graph.node("Concat", [shape, rest], hint="logits_shape", axis=0)], hint="logits_")


def _last_position(graph: GraphBuilder, x: str) -> str:
    starts, ends = graph.constant("last.start", np.array([-1], np.int64)), graph.constant("last.end", np.array([np.iinfo(np.int64).max]))
    return graph.node("Slice", [x, starts, ends, graph.constant("axis.1", np.array([1], np.int64))], hint="last")


def _metadata(subject: str, blocks: Sequence[BlockSpec], dims: ModelDims, precision: Precision, max_context: int) -> dict[str, str]:
    plain = [{"operator": {"kind": block.operator.kind, **asdict(block.operator)}, "ffn": asdict(block.ffn)} for block in blocks]
    shared = [
        state_names(state.name, i)[0]
        for i, block in enumerate(blocks)
        for state in operator_for(block.operator).states(block.operator, dims)
        if state.shared
    ]
    return {
        "archsearch.format": FORMAT,
        "archsearch.subject": subject,
        "archsearch.blocks": json.dumps(plain),
        "archsearch.dims": json.dumps(asdict(dims)),
        "archsearch.precision": precision,
        "archsearch.max_context": str(max_context),
        "archsearch.shared_states": json.dumps(shared),
    }
