"""Budgets: what parses, what is refused and with which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.budgets import Budget, Metric, budgets_from_table, combine, parse_budget, parse_metric
from archsearch.errors import BudgetError

METRICS = st.one_of(
    st.builds(Metric, st.sampled_from(["decode_ms", "prefill_ms", "memory_mb"]), st.integers(1, 10**7)),
    st.just(Metric("parameters")),
)


@given(metric=METRICS, limit=st.floats(1e-6, 1e15))
def test_what_is_written_is_read_back(metric: Metric, limit: float) -> None:
    assert parse_budget(f"{metric}<={limit!r}") == Budget(metric, limit)
    assert parse_metric(str(metric)) == metric
    assert budgets_from_table({str(metric): limit}) == (Budget(metric, limit),)


@given(text=st.text(max_size=30))
def test_anything_else_is_a_budget_error(text: str) -> None:
    try:
        budget = parse_budget(text)
    except BudgetError:
        return
    assert budget.limit > 0
    assert parse_budget(f"{budget.metric}<={budget.limit!r}") == budget


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("decode_ms@4096<=20", Metric("decode_ms", 4096), 20.0),
        ("prefill_ms@512<=0.5", Metric("prefill_ms", 512), 0.5),
        (" memory_mb@1024 <= 4e2 ", Metric("memory_mb", 1024), 400.0),
        ("parameters<=400e6", Metric("parameters"), 4e8),
        ("parameters<=400M", Metric("parameters"), 4e8),
        ("parameters<=1.2b", Metric("parameters"), 1.2e9),
        ("parameters<=800 k", Metric("parameters"), 8e5),
    ],
)
def test_accepted(text: str, metric: Metric, limit: float) -> None:
    assert parse_budget(text) == Budget(metric, limit)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("decode_ms@4096<20", "METRIC<=LIMIT"),
        ("decode_ms@4096>=20", "METRIC<=LIMIT"),
        ("decode_ms@4096=20", "METRIC<=LIMIT"),
        ("decode_ms@4096<=", "METRIC<=LIMIT"),
        ("<=20", "unknown metric"),
        ("decode_ms<=20", "needs a number of tokens behind @"),
        ("decode_ms@<=20", "needs a number of tokens behind @"),
        ("decode_ms@0<=20", "needs a number of tokens behind @"),
        ("decode_ms@-5<=20", "needs a number of tokens behind @"),
        ("decode_ms@4k<=20", "needs a number of tokens behind @"),
        ("decode@4096<=20", "did you mean decode_ms?"),
        ("memory_gb@4096<=20", "did you mean memory_mb?"),
        ("parametres<=4e8", "did you mean parameters?"),
        ("latency@5<=1", "known: decode_ms@CONTEXT"),
        ("parameters@5<=1", "unknown metric"),
        ("decode_ms@4096<=0", "must be a positive number"),
        ("decode_ms@4096<=-1", "is no number"),
        ("decode_ms@4096<=nan", "is no number"),
        ("decode_ms@4096<=inf", "is no number"),
        ("decode_ms@4096<=1e999", "must be a positive number"),
        ("decode_ms@4096<=20ms", "is no number"),
        ("decode_ms@4096<=20M", "is no number"),
        ("decode_ms@4096<=1.2.3", "is no number"),
        ("decode_ms@4096<=<=20", "is no number"),
        ("decode_ms@²<=20", "needs a number of tokens behind @"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(BudgetError) as error:
        parse_budget(text)
    assert says in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_in_a_file_must_be_positive(limit: float) -> None:
    with pytest.raises(BudgetError, match="must be a positive number"):
        budgets_from_table({"decode_ms@4096": limit})


def test_the_command_line_wins_metric_by_metric() -> None:
    file = budgets_from_table({"decode_ms@4096": 20.0, "parameters": 4e8})
    line = [parse_budget("decode_ms@4096<=15"), parse_budget("decode_ms@1024<=10"), parse_budget("decode_ms@1024<=9")]
    assert set(map(str, combine(file, line))) == {"decode_ms@4096<=15", "parameters<=400000000", "decode_ms@1024<=9"}


def test_a_file_may_ask_for_a_probability() -> None:
    assert budgets_from_table({"decode_ms@4096": {"limit": 20, "confidence": 0.95}}) == (parse_budget("P(decode_ms@4096<=20)>=0.95"),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"limit": 20, "confidence": 2.0}, "from 0.5 to 0.999"),
        ({"limit": 20, "sure": 0.9}, "unknown key 'sure'"),
        ({"confidence": 0.9}, "limit is missing"),
        ("20 ms", "is no number"),
        (True, "is no number"),
    ],
)
def test_other_values_in_a_file_are_refused(value: object, says: str) -> None:
    with pytest.raises(BudgetError, match=says):
        budgets_from_table({"decode_ms@4096": value})


def test_both_limits_of_a_size_stay_and_the_line_wins_on_each_side() -> None:
    file = [parse_budget("parameters<=5M"), parse_budget("decode_ms@64<=3")]
    line = [parse_budget("parameters>=4M"), parse_budget("P(decode_ms@64<=2)>=0.9")]
    assert set(map(str, combine(file, line))) == {"parameters<=5000000", "parameters>=4000000", "P(decode_ms@64<=2)>=0.9"}
    assert parse_budget("parameters>=4M").excess(3e6) == pytest.approx(0.25)
