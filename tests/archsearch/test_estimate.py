"""The estimator on simulated devices whose true times are known."""

from __future__ import annotations

import numpy as np
import pytest

from archsearch.estimate import Estimate, Widening, summary


def simulated(generator: np.random.Generator, *, rounds: int, busy: float, noise: float = 0.01) -> np.ndarray:
    """Round times of a block that takes 5 ms, on a machine where a neighbour makes a share of the rounds 1.5 times as long."""
    times = 5e6 * (1 + noise * generator.standard_normal(rounds))
    return np.where(generator.random(rounds) < busy, 1.5 * times, times)


@pytest.mark.parametrize("busy", [0.0, 0.2, 0.4])
def test_a_neighbour_that_comes_and_goes_does_not_move_the_value(busy: float) -> None:
    generator = np.random.default_rng(1)
    values = [summary(simulated(generator, rounds=20, busy=busy)).value for _ in range(60)]
    assert np.median(values) == pytest.approx(5.0, rel=0.015)
    assert np.quantile(np.abs(np.array(values) / 5 - 1), 0.9) < 0.03


def test_the_interval_covers_the_quartile_about_as_often_as_it_claims() -> None:
    """Of normal noise the lower quartile is known: 0.6745 deviations below the mean."""
    generator = np.random.default_rng(2)
    truth = 5 * (1 - 0.6745 * 0.02)
    found = [summary(simulated(generator, rounds=20, busy=0, noise=0.02), seed=i) for i in range(300)]
    coverage = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    assert 0.82 <= coverage <= 0.97


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("between", [0.0, 0.005, 0.02])
def test_the_interval_covers_also_where_processes_differ(processes: int, between: float) -> None:
    """The truth is what such profiles find on average; rounds are disturbed upwards only, processes either way."""
    generator = np.random.default_rng(5)

    def profiles(count: int) -> np.ndarray:
        apart = between * generator.standard_normal((count, processes, 1))
        return 5e6 * (1 + apart + generator.exponential(0.01, (count, processes, 5))).reshape(count, -1)

    names = [str(n) for n in range(processes) for _ in range(5)]
    truth = np.quantile(profiles(20_000), 0.25, axis=1).mean() / 1e6
    found = [summary(rounds, names, seed=i) for i, rounds in enumerate(profiles(300))]
    coverage = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    assert coverage >= 0.83
    blind = [summary(rounds, seed=i) for i, rounds in enumerate(profiles(300))]
    if between >= 0.02:
        assert np.mean([estimate.low <= truth <= estimate.high for estimate in blind]) < 0.7, "rounds alone claim too much"


def test_processes_that_agree_do_not_widen() -> None:
    rounds = np.array([5e6, 5.1e6, 5.2e6, 5.3e6] * 2)
    assert summary(rounds, list("aaaabbbb")) == summary(rounds)
    assert summary(rounds, list("aaaaaaaa")) == summary(rounds)


def test_a_process_in_another_state_does_not_widen_where_enough_agree() -> None:
    """One of four whose memory lay badly: its rounds are all 1.6 times as long."""
    draw = np.random.default_rng(0)
    rounds = np.concatenate([draw.normal(scale, 0.01 * scale, 10) for scale in (1e6, 1.01e6, 1.6e6, 0.99e6)])
    names = [name for name in "abcd" for _ in range(10)]
    found = summary(rounds, names)
    assert found.value == pytest.approx(1.0, rel=0.02)
    assert found.relative < 0.03
    few = summary(rounds[10:30], names[10:30])  # two processes: nobody can tell which is the usual state
    assert few.relative > 0.5


def test_more_rounds_narrow_the_interval() -> None:
    generator = np.random.default_rng(3)
    few = np.mean([summary(simulated(generator, rounds=6, busy=0)).relative for _ in range(40)])
    many = np.mean([summary(simulated(generator, rounds=60, busy=0)).relative for _ in range(40)])
    assert many < few / 2


def test_one_round_and_equal_rounds_have_no_spread() -> None:
    for rounds in (np.array([7e6]), np.full(6, 7e6)):
        assert summary(rounds) == Estimate(7.0, 7.0, 7.0)


@pytest.mark.parametrize("error", [0.0, 0.01, 0.06])
def test_a_widened_interval_covers_models_that_it_was_not_fitted_to(error: float) -> None:
    """Intervals of +-1 % around predictions that are off by `error` more: fitted on 30 models, they cover 9 of 10 others."""
    generator = np.random.default_rng(4)
    covered = []
    for _ in range(200):
        offs = np.hypot(0.006, error) * generator.standard_normal(31)
        widening = Widening.fit([abs(off) for off in offs[:30]], [0.01] * 30)
        wide = widening.apply(Estimate(1.0, 0.99, 1.01))
        covered.append(wide.low <= 1 + offs[30] <= wide.high)
    assert 0.84 <= np.mean(covered) <= 0.97


def test_widening_keeps_the_value_and_grows_with_the_error() -> None:
    estimate = Estimate(2.0, 1.9, 2.2)
    small, large = Widening(error=0.01, factor=1.5).apply(estimate), Widening(error=0.1, factor=1.5).apply(estimate)
    assert small.value == large.value == 2.0
    assert large.low < small.low < estimate.low < estimate.high < small.high < large.high
    with pytest.raises(ValueError, match="whole models"):
        Widening.fit([], [])
