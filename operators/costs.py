"""What a block costs by arithmetic: parameters, FLOPs, bytes. From specs alone, without torch.

Bytes are those of the ONNX file that `operators.graph` writes: fp32, or blocks of weights with one fp32 scale each (symmetric, no
zero points): 4 + 1 bits a weight for int4 in blocks of 32, 4 + 1/4 for int4g128 and 8 + 1/4 for int8 in blocks of 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, Precision, WeightSpec

BITS: dict[Precision, int] = {"fp32": 32, "int8": 8, "int4": 4, "int4g128": 4}
GROUPS: dict[Precision, int] = {"int8": 128, "int4": 32, "int4g128": 128}
"""Weights that share a scale, at most. int4 has Q4_0's 32; what larger ones gain and cost stands in docs/operators.md."""
SMALLEST_GROUP = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCosts:
    """Analytic costs of one block."""

    block: BlockSpec
    dims: ModelDims
    weights: tuple[WeightSpec, ...]

    @property
    def parameters(self) -> int:
        return sum(weight.size for weight in self.weights)

    @property
    def operator_parameters(self) -> int:
        """Of the token mixer alone, without its norm."""
        return sum(weight.size for weight in self.weights if weight.name.startswith("operator."))

    @property
    def ffn_parameters(self) -> int:
        """Of the FFN alone, without its norm."""
        return sum(weight.size for weight in self.weights if weight.name.startswith("ffn."))

    def flops(self, *, tokens: int, context: int) -> int:
        """FLOPs for `tokens` new tokens after `context` old ones at batch 1; a multiply-add counts as two."""
        linear = 2 * tokens * sum(weight.size for weight in self.weights if weight.linear)
        operator = operator_for(self.block.operator)
        return linear + operator.mixing_flops(self.block.operator, self.dims, tokens=tokens, context=context)

    def weight_bytes(self, precision: Precision) -> int:
        return sum(weight_bytes(weight, precision) for weight in self.weights)

    def state_bytes(self, *, batch: int, cache: int) -> int:
        """Bytes of the caches for sequences of `cache` positions."""
        operator = operator_for(self.block.operator)
        return sum(state.bytes(batch=batch, cache=cache) for state in operator.states(self.block.operator, self.dims))


def block_weights(block: BlockSpec, dims: ModelDims) -> tuple[WeightSpec, ...]:
    """All weights of a block under their names in the model, without "layers.N."."""
    D, hidden = dims.hidden_size, block.ffn.intermediate_size
    operator = operator_for(block.operator).weights(block.operator, dims)
    return (
        WeightSpec(name="operator_norm.weight", shape=(D,), linear=False),
        *(WeightSpec(name=f"operator.{weight.name}", shape=weight.shape, linear=weight.linear) for weight in operator),
        WeightSpec(name="ffn_norm.weight", shape=(D,), linear=False),
        WeightSpec(name="ffn.w1.weight", shape=(hidden, D), linear=True),
        WeightSpec(name="ffn.w3.weight", shape=(hidden, D), linear=True),
        WeightSpec(name="ffn.w2.weight", shape=(D, hidden), linear=True),
    )


def head_weights(dims: ModelDims, vocab_size: int, tie_embeddings: bool) -> tuple[WeightSpec, ...]:
    """Embedding, final norm, and the head where it is not tied."""
    embedding = WeightSpec(name="embed_tokens.weight", shape=(vocab_size, dims.hidden_size), linear=True)
    norm = WeightSpec(name="embedding_norm.weight", shape=(dims.hidden_size,), linear=False)
    head = WeightSpec(name="lm_head.weight", shape=(vocab_size, dims.hidden_size), linear=True)
    return (embedding, norm) if tie_embeddings else (embedding, norm, head)


def model_weights(blocks: Sequence[BlockSpec], dims: ModelDims, *, vocab_size: int, tie_embeddings: bool) -> tuple[WeightSpec, ...]:
    """Every weight of a model, under its full name."""
    layers = tuple(
        WeightSpec(name=f"layers.{i}.{weight.name}", shape=weight.shape, linear=weight.linear)
        for i, block in enumerate(blocks)
        for weight in block_weights(block, dims)
    )
    return head_weights(dims, vocab_size, tie_embeddings)[:1] + layers + head_weights(dims, vocab_size, tie_embeddings)[1:]


def block_costs(block: BlockSpec, dims: ModelDims) -> BlockCosts:
    return BlockCosts(block=block, dims=dims, weights=block_weights(block, dims))


def model_parameters(blocks: Sequence[BlockSpec], dims: ModelDims, *, vocab_size: int, tie_embeddings: bool) -> int:
    """Parameters of a whole model; a tied embedding counts once."""
    head = sum(weight.size for weight in head_weights(dims, vocab_size, tie_embeddings))
    return head + sum(block_costs(block, dims).parameters for block in blocks)


def group_size(precision: Precision, columns: int) -> int:
    """Weights of a row that share a scale: as many as the precision says, halved (down to 32) until a row of `columns` is whole in
    them, since what is padded is stored and multiplied too."""
    size = GROUPS[precision]
    while size > SMALLEST_GROUP and columns % size:
        size //= 2
    return size


def weight_bytes(weight: WeightSpec, precision: Precision) -> int:
    """Stored bytes of one weight tensor; only linear ones are quantised, rows padded to whole blocks."""
    if precision == "fp32" or not weight.linear:
        return 4 * weight.size
    rows, columns = weight.shape
    size = group_size(precision, columns)
    blocks = -(-columns // size)
    return rows * blocks * (size * BITS[precision] // 8 + 4)
