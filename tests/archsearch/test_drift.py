"""Two factors from references: exact without noise, and not bent by one that was disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from archsearch.drift import Drift, Reference, drift_of


def references(pace: float, walk: float, shares: list[float]) -> list[Reference]:
    return [Reference(ratio=pace * share + walk * (1 - share), warm=share) for share in shares]


@pytest.mark.parametrize(("pace", "walk"), [(1.0, 1.0), (1.02, 1.4), (1.1, 0.9)])
def test_both_factors_are_recovered(pace: float, walk: float) -> None:
    found = drift_of(references(pace, walk, [1.0, 0.95, 0.6, 0.55, 0.7]))
    assert found is not None
    # The chain with 95 % warm time counts as warm, so the pace is between its ratio and the truth.
    assert found.pace == pytest.approx(pace, rel=0.03)
    assert found.factor(0.6) == pytest.approx(pace * 0.6 + walk * 0.4, rel=0.01)


def test_a_single_factor_where_nothing_is_warm_or_nothing_is_cold() -> None:
    assert drift_of([]) is None
    assert drift_of(references(1.0, 1.2, [0.5, 0.5, 0.5])) == Drift(pace=pytest.approx(1.1), walk=pytest.approx(1.1))
    assert drift_of(references(1.05, 1.0, [1.0, 1.0])) == Drift(pace=1.05, walk=1.05)


def test_one_disturbed_reference_bends_nothing() -> None:
    disturbed = [*references(1.0, 1.3, [1.0, 0.6, 0.6, 0.5, 0.5]), Reference(ratio=2.5, warm=0.55)]
    assert drift_of(disturbed) == Drift(pace=1.0, walk=pytest.approx(1.3))


def test_with_noise_the_factor_of_a_model_is_nearer_than_one_number_for_all() -> None:
    """A walk that got dearer by 30 %, a model that walks less than the references: one factor for everything is too much for it."""
    generator, single, double = np.random.default_rng(0), [], []
    truth = 1.0 * 0.85 + 1.3 * 0.15
    for _ in range(200):
        found = [
            Reference(ratio=exact.ratio * generator.normal(1, 0.01), warm=exact.warm)
            for exact in references(1.0, 1.3, [1.0, 1.0, 0.55, 0.6, 0.6, 0.65])
        ]
        drift = drift_of(found)
        assert drift is not None
        double.append(drift.factor(0.85) / truth - 1)
        single.append(float(np.median([reference.ratio for reference in found])) / truth - 1)
    assert np.median(np.abs(double)) < 0.01 < 0.03 < np.median(np.abs(single))
