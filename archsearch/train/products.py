"""Which library multiplies fp32 matrices on a CPU: torch's BLAS, or oneDNN where it is faster and as exact.

torch's CPU builds multiply fp32 matrices with MKL, which on AMD's processors leaves AVX-512 unused; oneDNN, which the same builds hold
for bf16, does not ask who made the processor. torch hands fp32 products to it at the precision "medium", which *permits* bf16
arithmetic: oneDNN uses it where the processor has bf16 tiles (AMX), and computes in fp32 elsewhere. So its products are compared
with float64 before any is used, and where they are rounded to bf16, BLAS multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from archsearch.train.settings import Products

EXACT = 8.0
"""A sum of n fp32 products may err by this many times `sqrt(n)` roundings, root mean square. Both libraries are found below 0.4 at
n = 256 to 1024, TF32 at 130 to 500, bf16 at 1500 to 3000."""
ROWS, PROBE = 512, 256
"""Tokens, and width, of the products that are compared with float64."""


@contextmanager
def use_products(library: Products) -> Iterator[None]:
    """Multiply fp32 matrices with this library within a block, in all threads of the process; with BLAS where oneDNN, on the
    processor that a training was moved to, is not exact."""
    if library == "blas" or not onednn_is_exact():
        yield
    else:
        with _medium():
            yield


@cache
def onednn_is_exact() -> bool:
    """Whether oneDNN multiplies fp32 matrices in fp32 on this processor."""
    matrices = _matrices(PROBE)
    with _medium():
        products = _layer_products(*matrices)
    return is_fp32(products, _layer_products(*(matrix.double() for matrix in matrices)), (PROBE, 4 * PROBE, ROWS))


def is_fp32(products: tuple[Tensor, ...], references: tuple[Tensor, ...], terms: tuple[int, ...]) -> bool:
    """Whether the errors of sums of so many `terms` are those of fp32. Of standard normal numbers, a sum of n products has a standard
    deviation of sqrt(n), and each of its n additions rounds a number of at most about that size."""
    rounding = torch.finfo(torch.float32).eps / 2
    errors = [(product.double() - reference).norm() / reference.norm() for product, reference in zip(products, references, strict=True)]
    return all(bool(error < EXACT * rounding * n**0.5) for error, n in zip(errors, terms, strict=True))


@contextmanager
def _medium() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _matrices(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a weight, and gradients of the outputs, of an FFN's first product."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, width), (4 * width, width), (ROWS, 4 * width))
    x_TD, w_FD, g_TF = (torch.randn(shape, generator=generator) for shape in shapes)
    return x_TD, w_FD, g_TF


def _layer_products(x_TD: Tensor, w_FD: Tensor, g_TF: Tensor) -> tuple[Tensor, ...]:
    return x_TD @ w_FD.mT, g_TF @ w_FD, g_TF.mT @ x_TD
