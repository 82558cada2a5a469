"""How matrices are multiplied where nobody says: by what the processor is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from archsearch.data import TokenData
from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings, processor
from archsearch.train.planning import make_plan
from archsearch.train.processor import default_dtype, default_products, default_threads


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
    ids=["avx512-bf16", "amx", "neither"],
)
def test_bf16_where_there_are_instructions_for_it(avx512_bf16: bool, amx: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert default_dtype("cpu") == dtype


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo to read the processor's flags from")
def test_this_processor_is_known_by_its_flags() -> None:
    """torch asks the processor, Linux writes down what it answered."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split()
    assert default_dtype("cpu") == ("bf16" if {"avx512_bf16", "amx_tile"} & set(flags) else "fp32")


@pytest.mark.parametrize("emulated", [True, False])
def test_a_gpu_that_emulates_bf16_trains_in_fp32(emulated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert default_dtype("cuda") == ("fp32" if emulated else "bf16")
    assert default_products("cuda") == "blas"


@pytest.mark.parametrize(
    ("vendor", "capability", "exact", "library"),
    [
        ("AuthenticAMD", "AVX512", True, "onednn"),
        ("AuthenticAMD", "AVX2", True, "blas"),
        ("GenuineIntel", "AVX512", True, "blas"),
        ("AuthenticAMD", "AVX512", False, "blas"),
    ],
)
def test_onednn_where_blas_leaves_avx512_unused(
    vendor: str, capability: str, exact: bool, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(processor, "onednn_is_exact", lambda: exact)
    assert default_products("cpu") == library
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert default_products("cpu") == "blas"


def test_a_processor_is_known_without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "none")
    for says, intel in (("Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", True), ("AMD64 Family 25, AuthenticAMD", False)):
        monkeypatch.setattr(processor.platform, "processor", lambda says=says: says)
        assert processor.made_by_intel() == intel


@pytest.mark.parametrize(
    ("limit", "threads"), [("200000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8), ("nonsense", 8), (None, 8)]
)
def test_threads_of_a_container_are_those_it_was_given(
    limit: str | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(processor, "CGROUP_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(processor.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert default_threads() == threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # OMP_NUM_THREADS=1, as torchrun sets it
    assert default_threads() == 1


def test_two_plans_are_alike_whatever_the_clock_says(tiny_spec: ArchSpec, data: TokenData, monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice is timed: a plan without a time budget never looks at a clock."""

    def no_clock() -> float:
        raise AssertionError("a clock was read")

    for name in ("monotonic", "perf_counter", "time"):
        monkeypatch.setattr(f"archsearch.train.planning.time.{name}", no_clock)
    settings = TrainSettings(tokens=4096)
    plans = [make_plan(tiny_spec, data, settings) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].threads == default_threads()
