"""The library that multiplies fp32 matrices is never one that rounds to less than fp32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from archsearch.train import products
from archsearch.train.products import PROBE, ROWS, is_fp32, onednn_is_exact, use_products

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


@needs_onednn
@pytest.mark.parametrize("rounding", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_an_exact_library_multiplies(rounding: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 as on a processor with AMX. The plan of a training that was begun elsewhere may name oneDNN all the same."""

    def rounded(*matrices: Tensor) -> tuple[Tensor, ...]:
        exact = real_products(*(matrix.double() for matrix in matrices))
        wanted = torch.float64 if matrices[0].dtype == torch.float64 else torch.float32
        return tuple(product.to(rounding if by_medium() else wanted).to(wanted) for product in exact)

    monkeypatch.setattr(products, "_layer_products", rounded)
    assert onednn_is_exact() == (rounding is torch.float32)
    with use_products("onednn"):
        assert by_medium() == (rounding is torch.float32)
    assert not by_medium()


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
