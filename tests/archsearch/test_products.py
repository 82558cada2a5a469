"""Which library multiplies fp32 matrices: chosen by a clock, and never one that rounds to less than fp32."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from archsearch.train import products
from archsearch.train.products import PROBE, ROWS, fastest_products, is_fp32, onednn_is_exact, use_products

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
real_products = products._layer_products


def by_medium() -> bool:
    return torch.get_float32_matmul_precision() == "medium"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What was found out about a pretended processor."""
    onednn_is_exact.cache_clear()
    yield
    onednn_is_exact.cache_clear()


class Machine:
    """A clock, and products that take as long by it as they are said to."""

    def __init__(self, seconds: dict[str, float], rounding: torch.dtype) -> None:
        self.now, self.seconds, self.rounding = 0.0, seconds, rounding

    def perf_counter(self) -> float:
        return self.now

    def products(self, *matrices: Tensor) -> tuple[Tensor, ...]:
        exact = real_products(*(matrix.double() for matrix in matrices))
        if matrices[0].dtype == torch.float64:
            return exact
        self.now += self.seconds["onednn" if by_medium() else "blas"]
        return tuple(product.to(self.rounding if by_medium() else torch.float32).float() for product in exact)


@needs_onednn
@pytest.mark.parametrize(
    ("onednn", "rounding", "chosen"),
    [
        (0.8, torch.float32, "onednn"),
        (0.98, torch.float32, "blas"),  # no more than noise
        (1.2, torch.float32, "blas"),
        (0.1, torch.bfloat16, "blas"),  # as on a processor with AMX
    ],
)
def test_the_faster_library_is_taken_if_it_is_exact(
    onednn: float, rounding: torch.dtype, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine({"blas": 1.0, "onednn": onednn}, rounding)
    monkeypatch.setattr(products, "_layer_products", machine.products)
    monkeypatch.setattr(products, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    assert fastest_products(16, "cpu") == chosen
    with use_products("onednn"):  # as the plan of a training says that was begun elsewhere
        assert by_medium() == (rounding is torch.float32)
    assert not by_medium()


def test_only_a_cpu_with_onednn_has_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_products(16, "cuda") == "blas"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest_products(16, "cpu") == "blas"


def test_arithmetic_below_fp32_is_seen() -> None:
    """Factors rounded to bf16 or TF32 and summed in fp32, as hardware does it; BLAS is seen to be exact."""
    matrices = products._matrices(PROBE)
    references, terms = real_products(*(matrix.double() for matrix in matrices)), (PROBE, 4 * PROBE, ROWS)
    assert is_fp32(real_products(*matrices), references, terms)
    assert not is_fp32(real_products(*(matrix.bfloat16().float() for matrix in matrices)), references, terms)
    tf32 = (matrix.view(torch.int32).bitwise_and(-1 << 13).view(torch.float32) for matrix in matrices)
    assert not is_fp32(real_products(*tf32), references, terms)


def test_the_precision_that_was_set_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_exact", lambda: True)
    with use_products("blas"):
        assert not by_medium()
    with pytest.raises(ZeroDivisionError), use_products("onednn"):
        assert by_medium()
        _ = 1 / 0
    assert not by_medium()
