"""What the tests of the search share: a searcher on the analytic table, and the true front by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from search_fakes import AnalyticTable, FakeEvaluator, as_evaluator, as_table, quality_of

from archsearch.budgets import parse_budget
from archsearch.search import DesignSpace, Searcher, SearchEvent, SearchResult
from archsearch.space import Space
from archsearch.spec import ArchSpec

TrialState = optuna.trial.TrialState


def searcher_of(run_dir: Path, space: Space, budgets: Sequence[str] = (), **options: Any) -> Searcher:
    table = options.pop("table", None) or AnalyticTable()
    evaluator = options.pop("evaluator", None) or FakeEvaluator(run_dir / "trained")
    parsed = tuple(parse_budget(budget) for budget in budgets)
    return Searcher(space, as_table(table), as_evaluator(evaluator), run_dir, budgets=parsed, **{"trials": 8, **options})


def search(searcher: Searcher) -> tuple[SearchResult, list[SearchEvent]]:
    events = list(searcher.run())
    return searcher.result(), events


def trials_of(searcher: Searcher) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=searcher.study_name, storage=searcher.url).get_trials()


def reachable(space: Space) -> dict[str, ArchSpec]:
    """Every layout that the encoding can say."""
    designs = DesignSpace(space)
    specs = map(designs.spec, designs.all())
    return {spec.spec_id: spec for spec in specs}


def objectives(searcher: Searcher, spec: ArchSpec) -> tuple[float, ...]:
    recall, text = quality_of(spec)
    costs = searcher.costs(spec).values
    return (-1.0 if recall > 0.9 else -recall, text, costs[str(searcher.latency)], costs[str(searcher.memory)])


def brute_force_front(searcher: Searcher, specs: Sequence[ArchSpec]) -> set[tuple[float, ...]]:
    found = [objectives(searcher, spec) for spec in specs if searcher.costs(spec).feasible]
    return {p for p in found if not any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in found)}
