"""Weights in blocks of 32 along the input channels, as the runtime's `MatMulNBits` and `GatherBlockQuantized` read them.

Symmetric: `w = scale * (q - 2^(bits-1))`. The scale makes the entry of largest magnitude exact (`scale = -extreme / 2^(bits-1)`,
as ONNX Runtime's own quantiser and llama.cpp's Q4_0 do), so all 2^bits levels are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from operators.costs import BITS, QUANT_BLOCK
from operators.specs import Precision, WeightSpec


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised matrix.

    Attributes:
        data: uint8 [rows, blocks, QUANT_BLOCK * bits / 8]; two int4 values in a byte, the first in the low half.
        scales: float32 [rows, blocks].
        columns: input channels before padding to whole blocks.
    """

    data: np.ndarray
    scales: np.ndarray
    bits: int
    columns: int


def quantize(weight: np.ndarray, bits: int) -> Quantized:
    """Quantise a float matrix [rows, columns] to 4 or 8 bits."""
    rows, columns = weight.shape
    blocks = -(-columns // QUANT_BLOCK)
    padded = np.zeros((rows, blocks * QUANT_BLOCK), np.float32)
    padded[:, :columns] = weight
    blocked = padded.reshape(rows, blocks, QUANT_BLOCK)
    at = np.abs(blocked).argmax(-1)[..., None]
    half = 1 << (bits - 1)
    scales = np.take_along_axis(blocked, at, -1)[..., 0] / -half
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.clip(np.rint(blocked * inverse[..., None]) + half, 0, 2 * half - 1).astype(np.uint8)
    data = levels if bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << 4)
    return Quantized(data=data, scales=scales.astype(np.float32), bits=bits, columns=columns)


def dequantize(quantized: Quantized) -> np.ndarray:
    """The float32 matrix that the runtime computes with."""
    data = quantized.data
    if quantized.bits == 4:
        data = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    values = (data.astype(np.float32) - (1 << (quantized.bits - 1))) * quantized.scales[..., None]
    return values.reshape(len(values), -1)[:, : quantized.columns]


def dequantized(weights: Mapping[str, np.ndarray], specs: Iterable[WeightSpec], precision: Precision) -> dict[str, np.ndarray]:
    """All weights as a model of that precision computes with them: linear ones rounded to their blocks, others as they are."""
    if precision == "fp32":
        return dict(weights)
    linear = {spec.name for spec in specs if spec.linear}
    bits = BITS[precision]
    return {name: dequantize(quantize(value, bits)) if name in linear else value for name, value in weights.items()}
