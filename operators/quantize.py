"""Weights in blocks along the input channels, as the runtime's `MatMulNBits` and `GatherBlockQuantized` read them.

Symmetric: `w = scale * (q - 2^(bits-1))`. The scale makes the entry of largest magnitude exact (`scale = -extreme / 2^(bits-1)`,
as ONNX Runtime's own quantiser and llama.cpp's Q4_0 do), so all 2^bits levels are used.

The runtime's int8 and int4 products (`accuracy_level=4`) round their inputs too, to int8; `RoundedInputs` says so to a reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.costs import BITS, group_size
from operators.specs import Precision, WeightSpec

ROWS_AT_ONCE = 1 << 22
"""Values that are quantised together: enough for numpy to be fast, few enough to stay in the caches."""


@dataclass(frozen=True, slots=True)
class Quantized:
    """A quantised matrix.

    Attributes:
        data: uint8 [rows, blocks, block * bits / 8]; two int4 values in a byte, the first in the low half.
        scales: float32 [rows, blocks].
        columns: input channels before padding to whole blocks.
    """

    data: np.ndarray
    scales: np.ndarray
    bits: int
    columns: int

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return int(self.data.shape[2]) * 8 // self.bits


def quantize(weight: np.ndarray, precision: Precision) -> Quantized:
    """Quantise a float matrix [rows, columns] to int8 or int4, in blocks of `group_size(precision, columns)`."""
    return quantize_in_blocks(weight, BITS[precision], group_size(precision, weight.shape[1]))


def quantize_in_blocks(weight: np.ndarray, bits: int, block: int) -> Quantized:
    """Quantise a float matrix [rows, columns] to 4 or 8 bits, `block` weights with one scale."""
    rows, columns = weight.shape
    blocks = -(-columns // block)
    data = np.empty((rows, blocks, block * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    step = max(1, ROWS_AT_ONCE // columns)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        data[part], scales[part] = _quantize_rows(weight[part], bits, blocks, block)
    return Quantized(data=data, scales=scales, bits=bits, columns=columns)


def _quantize_rows(weight: np.ndarray, bits: int, blocks: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = weight.shape
    padded = np.zeros((rows, blocks * block), np.float32)
    padded[:, :columns] = weight
    blocked = padded.reshape(rows, blocks, block)
    at = np.abs(blocked).argmax(-1)[..., None]
    half = 1 << (bits - 1)
    scales = np.take_along_axis(blocked, at, -1)[..., 0] / -half
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    levels = np.clip(np.rint(blocked * inverse[..., None]) + half, 0, 2 * half - 1).astype(np.uint8)
    data = levels if bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << 4)
    return data, scales


def dequantize(quantized: Quantized) -> np.ndarray:
    """The float32 matrix that the runtime computes with."""
    data = quantized.data
    if quantized.bits == 4:
        data = np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)
    values = (data.astype(np.float32) - (1 << (quantized.bits - 1))) * quantized.scales[..., None]
    matrix: np.ndarray = values.reshape(len(values), -1)[:, : quantized.columns]
    return matrix


def dequantized(weights: Mapping[str, np.ndarray], specs: Iterable[WeightSpec], precision: Precision) -> dict[str, np.ndarray]:
    """All weights as a model of that precision computes with them: linear ones rounded to their blocks, others as they are."""
    if precision == "fp32":
        return dict(weights)
    linear = {spec.name for spec in specs if spec.linear}
    return {name: dequantize(quantize(value, precision)) if name in linear else value for name, value in weights.items()}


class RoundedInputs(np.ndarray):
    """A weight whose products round their inputs to int8 first; `operators.reference.linear` does so when it meets one.

    Attributes:
        group: input channels that share a scale: those of the weights' blocks as the runtime's x86 kernels have it, None for the
            whole row as its kernels for ARM have it.
    """

    group: int | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.group = getattr(source, "group", None)

    def round_inputs(self, x: np.ndarray) -> np.ndarray:
        """`x` [..., channels] on 255 levels symmetric around zero, the largest magnitude of each group exact."""
        channels = x.shape[-1]
        group = self.group or channels
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -channels % group)])
        grouped = padded.reshape(*x.shape[:-1], -1, group)
        step = np.abs(grouped).max(-1, keepdims=True) / 127
        levels = np.rint(np.divide(grouped, step, out=np.zeros_like(grouped), where=step != 0))
        return np.asarray((levels * step).reshape(padded.shape)[..., :channels])


def with_rounded_inputs(
    weights: Mapping[str, np.ndarray], specs: Iterable[WeightSpec], precision: Precision | None
) -> dict[str, np.ndarray]:
    """The same weights, the linear ones marked as `RoundedInputs`: by the blocks of that precision, or by whole rows for None."""
    linear = {spec.name for spec in specs if spec.linear}
    marked = dict(weights)
    for name in linear & marked.keys():
        view = np.asarray(marked[name]).view(RoundedInputs)
        view.group = precision and group_size(precision, view.shape[-1])
        marked[name] = view
    return marked
