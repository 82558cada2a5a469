"""The law of walks against made-up machines that follow it, with and without noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from archsearch.walk import Chain, WalkLaw, fit_walk

MB = 1e6
BLOCKS = {"conv": (2.5 * MB, 0.077), "gqa": (4.4 * MB, 0.195), "gla": (2.7 * MB, 0.088), "swa": (2.8 * MB, 0.115)}
"""Bytes and warm milliseconds of a copy."""
LENGTHS = (2, 3, 4, 6, 8, 11, 14)


def chains(law: WalkLaw, *, noise: float = 0.0, seed: int = 0, curve: str = "conv", scale: float = 1.0) -> list[Chain]:
    """As `archsearch.profile` measures them: two lengths of each block, more of one."""
    draw = np.random.default_rng(seed)
    return [
        Chain(
            block=name,
            copies=n,
            size_bytes=size * scale,
            each_ms=(warm * scale + size * scale * law.ms_per_byte * float(law.missed(n * size * scale)))
            * float(np.exp(noise * draw.normal())),
        )
        for name, (size, warm) in BLOCKS.items()
        for n in (LENGTHS if name == curve else (LENGTHS[0], LENGTHS[-1]))
    ]


def predicted(law: WalkLaw | None, known: list[Chain], counts: dict[str, int]) -> float:
    """A model's milliseconds, put together as `archsearch.latency` does."""
    walk = sum(n * BLOCKS[name][0] for name, n in counts.items())
    found = 0.0
    for name, n in counts.items():
        short, long = (next(c for c in known if (c.block, c.copies) == (name, copies)) for copies in (LENGTHS[0], LENGTHS[-1]))
        cold = law.cold_ms(short, long) if law else 0.0
        found += n * (long.each_ms + (cold * (float(law.missed(walk)) - float(law.missed(long.walk_bytes))) if law else 0.0))
    return found


def true(law: WalkLaw, counts: dict[str, int]) -> float:
    walk = sum(n * BLOCKS[name][0] for name, n in counts.items())
    return sum(n * (BLOCKS[name][1] + BLOCKS[name][0] * law.ms_per_byte * float(law.missed(walk))) for name, n in counts.items())


@pytest.mark.parametrize("capacity_mb", [12, 18, 25])
@pytest.mark.parametrize("steepness", [2.0, 3.0, 6.0])
def test_a_machine_that_follows_the_law_is_found_out(capacity_mb: float, steepness: float) -> None:
    law = WalkLaw(capacity_bytes=capacity_mb * MB, steepness=steepness, ms_per_byte=3e-8)
    found = fit_walk(chains(law))
    assert found is not None
    assert found.capacity_bytes == pytest.approx(law.capacity_bytes, rel=0.1)
    assert found.ms_per_byte == pytest.approx(law.ms_per_byte, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_noisy_chains_predict_models_better_than_their_plain_sum(seed: int) -> None:
    law = WalkLaw(capacity_bytes=18 * MB, steepness=3.0, ms_per_byte=3e-8)
    known = chains(law, noise=0.02, seed=seed)
    found = fit_walk(known)
    models: list[dict[str, int]] = [{"conv": 5, "gqa": 1}, {"conv": 4, "gla": 2}, {"conv": 2, "swa": 4}, {"gqa": 2, "conv": 1}]
    errors = [abs(predicted(found, known, counts) / true(law, counts) - 1) for counts in models]
    plain = [abs(predicted(None, known, counts) / true(law, counts) - 1) for counts in models]
    assert max(errors) < 0.08  # walks of 14 to 22 MB, where half is missed and everything counts
    assert np.mean(errors) < np.mean(plain) / 2


def test_one_disturbed_chain_does_not_bend_the_law() -> None:
    law = WalkLaw(capacity_bytes=18 * MB, steepness=3.0, ms_per_byte=3e-8)
    known = chains(law)
    at = next(i for i, chain in enumerate(known) if (chain.block, chain.copies) == ("conv", 8))
    known[at] = Chain(block="conv", copies=8, size_bytes=known[at].size_bytes, each_ms=known[at].each_ms * 1.3)
    found = fit_walk(known)
    assert found is not None
    counts = {"conv": 6, "gqa": 2}
    assert predicted(found, known, counts) == pytest.approx(true(law, counts), rel=0.05)


def test_blocks_just_add_up_where_longer_chains_take_no_longer() -> None:
    flat = WalkLaw(capacity_bytes=18 * MB, steepness=3.0, ms_per_byte=0.0)
    assert fit_walk(chains(flat)) is None
    assert fit_walk([Chain(block="conv", copies=8, size_bytes=MB, each_ms=1.0)]) is None


def test_models_far_larger_than_the_cache_take_what_their_chains_took() -> None:
    law = WalkLaw(capacity_bytes=18 * MB, steepness=3.0, ms_per_byte=3e-8)
    known = chains(law, scale=40.0)  # even two copies walk 200 MB
    found = fit_walk(known)
    counts = {"conv": 10, "gqa": 6}
    long = {chain.block: chain.each_ms for chain in known if chain.copies == LENGTHS[-1]}
    plain = sum(n * long[name] for name, n in counts.items())
    walk = 40 * sum(n * BLOCKS[name][0] for name, n in counts.items())
    value = plain
    for name, n in counts.items():
        short, longest = (next(c for c in known if (c.block, c.copies) == (name, copies)) for copies in (2, 14))
        if found is not None:
            value += n * found.cold_ms(short, longest) * float(found.missed(walk) - found.missed(longest.walk_bytes))
    assert value == pytest.approx(plain, rel=0.01)


def test_the_inverse_of_missed() -> None:
    law = WalkLaw(capacity_bytes=18 * MB, steepness=3.0, ms_per_byte=3e-8)
    for share in (0.1, 0.5, 0.9):
        assert float(law.missed(law.walk_at(share))) == pytest.approx(share)
    assert law.missed(np.array([0.0, 18 * MB, 1e12])) == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    dearer = replace(law, growth_per_byte=1 / (100 * MB))
    assert float(dearer.missed(100 * MB)) == pytest.approx(2 * float(law.missed(100 * MB)))
    for share in (0.1, 0.9, 1.5):
        assert float(dearer.missed(dearer.walk_at(share))) == pytest.approx(share)
