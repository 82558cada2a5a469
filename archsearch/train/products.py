"""Which library multiplies fp32 matrices on a CPU: torch's BLAS, or oneDNN where it is faster and as exact.

torch's CPU builds multiply fp32 matrices with MKL, which on AMD's processors leaves AVX-512 unused; oneDNN, which the same builds hold
for bf16, does not ask who made the processor. torch hands fp32 products to it at the precision "medium", which *permits* bf16
arithmetic: oneDNN uses it where the processor has bf16 tiles (AMX), and computes in fp32 elsewhere. So the products are not only
timed here but compared with float64, and a library that rounds to bf16 is never taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from archsearch.train.settings import Products

GAIN = 1.05
"""oneDNN is taken where it is at least this many times as fast, so that noise alone does not choose it."""
EXACT = 8.0
"""A sum of n fp32 products may err by this many times `sqrt(n)` roundings, root mean square. Both libraries are found below 0.4 at
n = 256 to 1024, bf16 arithmetic at 1500 to 3000."""
ROWS, ROUNDS, WIDEST = 512, 5, 1024
"""What is timed: tokens, times, and the largest width, for a wider one would only take longer."""


def fastest_products(hidden_size: int, device: str) -> Products:
    """The faster library for the three products of a layer (forward, gradient of the input, gradient of the weight) of this width,
    by timing them in turns. Only CPUs have a choice."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():
        return "blas"
    width = min(hidden_size, WIDEST)
    generator = torch.Generator().manual_seed(0)
    x_TD, w_FD, g_TF = (torch.randn(shape, generator=generator) for shape in ((ROWS, width), (4 * width, width), (ROWS, 4 * width)))
    references = _layer_products(x_TD.double(), w_FD.double(), g_TF.double())
    seconds: dict[Products, list[float]] = {"blas": [], "onednn": []}
    for number in range(1 + ROUNDS):  # the first chooses kernels, and is not counted
        for library, taken in seconds.items():
            with use_products(library):
                start = time.perf_counter()
                products = _layer_products(x_TD, w_FD, g_TF)
                if number:
                    taken.append(time.perf_counter() - start)
                elif library == "onednn" and not _exact(products, references, (width, 4 * width, ROWS)):
                    return "blas"
    return "onednn" if GAIN * min(seconds["onednn"]) < min(seconds["blas"]) else "blas"


@contextmanager
def use_products(library: Products) -> Iterator[None]:
    """Multiply fp32 matrices with this library within a block, in all threads of the process."""
    if library == "blas":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _layer_products(x_TD: Tensor, w_FD: Tensor, g_TF: Tensor) -> tuple[Tensor, ...]:
    return x_TD @ w_FD.mT, g_TF @ w_FD, g_TF.mT @ x_TD


def _exact(products: tuple[Tensor, ...], references: tuple[Tensor, ...], terms: tuple[int, ...]) -> bool:
    """Whether the errors are those of fp32. Of standard normal numbers, a sum of n products has a standard deviation of sqrt(n), and
    each of its n additions rounds a number of at most about that size."""
    rounding = torch.finfo(torch.float32).eps / 2
    for product, reference, n in zip(products, references, terms, strict=True):
        error = (product.double() - reference).norm() / reference.norm()
        if not error < EXACT * rounding * n**0.5:
            return False
    return True
