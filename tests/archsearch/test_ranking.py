"""Orders against orders: the coefficient is scipy's, the interval covers what it should, regrets are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from archsearch.quality import ranking
from archsearch.quality.ranking import between_seeds, paired, rank


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "RESAMPLES", 300)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = rank(a, b).tau
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(kendalltau(a, b).statistic)


def test_a_perfect_order_has_no_regret_and_is_validated() -> None:
    reference = list(np.linspace(1, 2, 16))
    found = rank(range(16), reference)
    assert (found.tau, found.low, found.high, found.regret_1, found.regret_3) == (1, 1, 1, 0, 0)
    assert found.verdict == "validated"
    few = rank([0, 1, 2, 3, 5, 4], range(6))
    assert few.tau is not None
    assert few.tau > 0.8
    assert few.verdict == "unvalidated"  # six layouts tell little
    upside_down = rank(range(16, 0, -1), reference)
    assert upside_down.tau == -1
    assert upside_down.regret_1 == pytest.approx(1)
    assert upside_down.regret_3 == pytest.approx(reference[-3] - 1)
    assert upside_down.verdict == "unvalidated"


def test_a_decent_tau_does_not_hide_a_bad_first_choice() -> None:
    """As the recall supernet's: all is in order but the favourite."""
    reference = [float(i) for i in range(12)]
    scores = [*reference[:11], -1.0]
    found = rank(scores, reference)
    assert found.tau is not None
    assert found.tau > 0.6
    assert found.regret_1 == 11
    assert found.regret_3 == 0


def test_chance_is_the_regret_of_a_random_choice() -> None:
    reference = [0.0, 1.0, 2.0, 3.0]
    found = rank([0.0] * 4, reference)
    assert found.tau is None
    assert found.verdict == "unvalidated"
    assert found.regret_1 == pytest.approx(np.mean(reference), abs=0.2)
    assert found.regret_3 == pytest.approx(1 / 4, abs=0.1)  # the best is among three of four in three of four cases


def test_few_layouts_have_wide_intervals_that_cover_the_truth() -> None:
    """Noisy copies of one order: of 60 intervals that say 90 %, most contain what many layouts tell."""
    generator = np.random.default_rng(0)
    big = generator.normal(size=2000)
    truth = kendalltau(big, big + generator.normal(size=2000)).statistic
    inside, widths = 0, []
    for number in range(60):
        reference = generator.normal(size=16)
        found = rank(reference + generator.normal(size=16), reference, seed=number)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert inside >= 46  # bootstrap intervals of 16 layouts are somewhat too narrow
    assert np.mean(widths) > 0.3


def test_seeds_against_each_other() -> None:
    rows = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]]
    assert between_seeds(rows).tau == pytest.approx(kendalltau(*rows).statistic)
    assert between_seeds(rows).regret_1 == 0
    with pytest.raises(ValueError, match="one seed"):
        between_seeds(rows[:1])
    with pytest.raises(ValueError, match="cannot be ranked"):
        rank([1.0], [1.0, 2.0])


def test_a_paired_difference_is_student_s() -> None:
    """By hand: differences -1, -2, -3; mean -2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027."""
    found = paired([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found.mean == pytest.approx(-2)
    assert found.low is not None
    assert found.high is not None
    assert (found.low, found.high) == pytest.approx((-2 - 4.30265 / 3**0.5, -2 + 4.30265 / 3**0.5), abs=1e-4)
    assert found.word == "cannot tell"
    assert paired([1.0, 1.1, 1.2], [2.0, 2.1, 2.21]).word == "better"
    assert paired([2.0, 2.1, 2.21], [1.0, 1.1, 1.2]).word == "worse"
    assert paired([1.0], [2.0]).low is None
    assert paired([1.0], [2.0]).word == "cannot tell"
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [2.0, 3.0])
