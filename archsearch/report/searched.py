"""Rows of what was searched: designs, budgets, the choice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from archsearch.budgets import LATENCY, SIZES, Budget, parse_budget
from archsearch.report import trained
from archsearch.report.files import RunFiles, trained_measurements
from archsearch.spec import ArchSpec
from operators.costs import model_parameters
from operators.kinds import operator_for
from reports.rows import BudgetRow, Card, Cell, DesignRow

UNTRAINED_SHOWN = 400


def cells(spec: ArchSpec) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            label=operator_for(block.operator).label(block.operator),
            family=operator_for(block.operator).family,
            ffn=block.ffn.intermediate_size,
        )
        for block in spec.layers
    )


def limits(search: Mapping[str, Any]) -> list[Budget]:
    """The budgets of a search document; of one by an earlier version, metrics and limits alone."""
    return [parse_budget(text) for text in search.get("limits") or [f"{name}<={limit!r}" for name, limit in search["budgets"].items()]]


def designs(run: RunFiles) -> tuple[DesignRow, ...]:
    """Every trained layout, those refused for their costs, and a sample of what the cheap pass looked at."""
    if run.search is None:
        return ()
    from archsearch.run import load_tables, make_searcher
    from archsearch.search.feasible import Costs

    budgets = limits(run.search)
    tables = load_tables(run.run_dir, run.search.get("devices") or [run.search["device"]])
    # What was searched is in the document, whatever the space file says now.
    space = replace(run.space, hold=(), search=run.space.search.model_copy(update={"baseline": None}))
    searcher = make_searcher(space, run.run_dir, tables, budgets, trials=None, seed=run.search["seed"])
    searcher.budgets = tuple(budgets)
    front = {point["spec_id"] for point in run.search["front"]}
    chosen = run.search["best"]["spec_id"] if run.search["best"] else None

    def row(spec: ArchSpec, costs: Costs, label: str) -> DesignRow:
        quality = searcher.evaluator.cached(spec)
        return DesignRow(
            spec_id=spec.spec_id,
            pattern=spec.pattern,
            cells=cells(spec),
            hidden_size=spec.hidden_size,
            parameters=model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings),
            latency_ms=costs.values[run.latency_metric],
            memory_mb=costs.values.get(run.memory_metric, 0.0) if run.memory_metric != "parameters" else 0.0,
            feasible=costs.feasible,
            why=costs.reason(searcher.budgets) or "",
            label=label,
            trained=quality is not None,
            recall_accuracy=quality.recall.value if quality else None,
            recall_solved=quality.solves_recall if quality else None,
            text_bits_per_byte=quality.text.value if quality else None,
            on_front=spec.spec_id in front,
            chosen=spec.spec_id == chosen,
        )

    rows = [row(entry.spec, entry.costs, entry.label) for entry in searcher.inner()]
    known = {design.spec_id for design in rows}
    for point in run.search["front"]:
        spec = ArchSpec.from_dict(point["spec"])
        if spec.spec_id not in known:
            rows.append(row(spec, searcher.costs(spec), ""))
    if (baseline := run.search.get("baseline")) is not None:
        spec = ArchSpec.from_dict(baseline["spec"])
        rows = [design for design in rows if design.spec_id != spec.spec_id]
        rows.append(row(spec, searcher.costs(spec), f"baseline {baseline['name']}"))
    trained = [design for design in rows if design.trained or design.label]
    rest = [design for design in rows if not design.trained and not design.label]
    step = max(1, len(rest) // UNTRAINED_SHOWN)
    return (*trained, *rest[::step])


def budgets(run: RunFiles) -> Iterable[BudgetRow]:
    if run.search is None:
        return
    best = run.search["best"]
    measured = trained_measurements(run)
    for budget in limits(run.search):
        name, kind = budget.name, budget.metric.kind
        reachable = run.search["unreachable"].get(name, {}).get("best_reachable")
        yield BudgetRow(
            metric=name.removesuffix(">="),
            unit="ms" if kind in LATENCY else "MB" if kind.endswith("_mb") else "",
            limit=budget.limit,
            predicted=best["costs"].get(budget.amount) if best else None,
            measured=measured.get(name),
            best_reachable=reachable,
            at_least=budget.at_least,
        )


def shared(run: RunFiles) -> tuple[str, ...]:
    """What the layout that all devices share costs on each, beside the one that would have been chosen for it alone."""
    said = []
    for device, entry in (run.search.get("shared") or {}).items() if run.search else ():
        if entry["latency_regret"] is None:
            said.append(f"{device}: no trained layout keeps its budgets")
            continue
        lost = "; recall is lost" if entry["recall_lost"] else ""
        difference = f"{entry['latency_regret']:+.1%}; bits per byte {entry['text_regret']:+.1%}{lost}"
        said.append(f"{device}: {entry['shared_ms']:.3g} ms, {entry['own_ms']:.3g} ms for its own choice ({difference})")
    return tuple(said)


def _card_title(run: RunFiles, budget: str) -> str:
    """ "decode @ 4096" of a budget's name, and on which device, where there are several."""
    device = next((name for name in run.searched_for if f"{name}/" in budget), run.device)
    what = budget.replace(f"{device}/", "").replace("_ms", "").replace("_mb", "").replace("@", " @ ")
    return f"{what} on {device}" if len(run.searched_for) > 1 and not budget.startswith(SIZES) else what


def cards(run: RunFiles) -> tuple[Card, ...]:
    best = run.search["best"] if run.search else None
    if best is None or run.chosen is None:
        return ()
    cards = []
    measured = trained_measurements(run)
    for budget in budgets(run):
        value = budget.measured if budget.measured is not None else budget.predicted
        if value is None or budget.at_least:  # a held size has an upper limit, too
            continue
        shown = f"{value / 1e6:.2f} M" if budget.metric == "parameters" else f"{value:.3g} {budget.unit}"
        limit = f"{budget.limit / 1e6:g} M" if budget.metric == "parameters" else f"{budget.limit:g} {budget.unit}"
        source = (
            "counted"
            if budget.metric == "parameters"
            else f"measured, predicted {budget.predicted:.3g}"
            if budget.metric in measured
            else "predicted"
        )
        cards.append(
            Card(
                title=_card_title(run, budget.metric),
                value=shown,
                note=f"{source}; budget {limit}",
                share=value / budget.limit,
            )
        )
    training = trained.training(run)
    if training is not None and training.held_out:
        cards.append(
            Card(
                title="Held-out text",
                value=f"{training.held_out[-1].bits_per_byte:.2f} bits/byte",
                note=training.facts.get("tokens", "") + " tokens trained",
            )
        )
    quality = best["quality"]
    recall = "solved" if quality["recall_status"] == "resolved" else f"{quality['recall_accuracy']:.0%}, unresolved"
    cards.append(Card(title="Recall (64-channel copy)", value=recall, note=f"{quality['recall_steps']} steps"))
    if run.search is not None and (baseline := run.search.get("baseline")) is not None and baseline["difference"] is not None:
        change = baseline["difference"]
        text = f"{change['text_bits_per_byte']:+.1%} bits/byte" if "text_bits_per_byte" in change else "not trained: over budget"
        faster = f"{change[run.latency_metric]:+.0%}"
        cards.append(Card(title=f"Beside {baseline['name']}", value=faster, note=f"{run.latency_metric}; {text}"))
    cards.append(Card(title="Shape", value=f"{len(run.chosen.layers)} × {run.chosen.hidden_size}", note=run.chosen.pattern))
    return tuple(cards)
