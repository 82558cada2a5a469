"""What a search found, as tables of at most 80 columns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.cli.tables import milliseconds, stdout, table

if TYPE_CHECKING:
    from archsearch.search import Searcher, SearchResult
    from archsearch.spec import ArchSpec


def print_result(result: SearchResult, searcher: Searcher, chosen: Path | None, *, trained_nothing: bool = False) -> None:
    """The front, the chosen layout marked, and what was not trained but is expected to be on it."""
    latency, memory = str(searcher.latency), str(searcher.memory)
    rows = []
    for point in result.front:
        mark = "→" if result.best is not None and point.spec == result.best.spec else " "
        recall = "solved" if point.quality.solves_recall else f"{point.quality.recall.value:.0%}"
        rows.append(_row(mark, point.spec, point.costs.values, latency, memory, recall, point.quality.text.value, f"trial {point.trial}"))
    rows.extend(_row(" ", guess.spec, guess.costs.values, latency, memory, "?", guess.text, "expected") for guess in result.proposed)
    if rows:
        stdout.print(table(["  layout", _unit(latency), _unit(memory), "recall", "bits/byte", "evidence"], rows))
        stdout.print(f"{_unit(latency)}: {latency}; {_unit(memory)}: {memory}", style="dim")
    if result.proposed:
        stdout.print(f"expected: {result.proposed[0].basis}", style="dim")
    if result.baseline is not None:
        _print_baseline(result.baseline)
    for device, entry in (result.devices or {}).items():
        if entry["latency_regret"] is None:
            stdout.print(f"{device}: no trained layout keeps its budgets")
        else:
            shared, own = milliseconds(entry["shared_ms"]), milliseconds(entry["own_ms"])
            lost = "; recall is lost" if entry["recall_lost"] else ""
            regret = f"{entry['latency_regret']:+.1%}; bits/byte {entry['text_regret']:+.1%}{lost}"
            stdout.print(f"{device}: {shared} ms for the shared layout, {own} ms for its own choice ({regret})")
    if result.certificate is not None:
        gap, points = result.certificate["worst_gap"], len(result.certificate["points"])
        stdout.print(f"certificate: at {points} latencies at most {gap:.2%} is left, were quality additive (HiGHS)", style="dim")
    for given in result.given_up:
        stdout.print(f"given up: {given.spec.pattern}, trial {given.number}: {given.reason}", style="yellow", markup=False)
    if result.given_up:
        stdout.print("the same command with --retry trains what was given up again", style="dim")
    if trained_nothing:
        stdout.print(f"{len(searcher.trained)} trained layouts answered, none was trained for this; --trials N trains", style="dim")
    if chosen is not None:
        if chosen.name != "spec.toml":
            stdout.print(f"{chosen.parent / 'spec.toml'} is left as it is: it belongs to the trained checkpoint beside it")
        stdout.print(f"chosen: {chosen}; quality is that of 64-channel copies, not yet validated at full width", style="dim")
    else:
        stdout.print("no layout within these budgets is trained, so none is chosen; --trials N trains N of them", style="yellow")


def _print_baseline(baseline: dict[str, Any]) -> None:
    """In one sentence: how the choice differs from it."""
    name, change = baseline["name"], baseline["difference"]
    state = "" if baseline["feasible"] else f" (over budget, not trained: {baseline['reason']})"
    if change is None:
        stdout.print(f"baseline {name}{state}")
        return
    shown = {metric: share for metric, share in change.items() if not metric.startswith("P(")}
    stdout.print(f"the choice beside {name}{state}: " + ", ".join(f"{metric} {share:+.1%}" for metric, share in shown.items()))


def _row(
    mark: str, spec: ArchSpec, costs: dict[str, float], latency: str, memory: str, recall: str, text: float | None, evidence: str
) -> list[str]:
    widths = sorted({block.ffn.intermediate_size for block in spec.layers})
    ffn = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]}-{widths[-1]}"
    layout = f"{mark} {spec.pattern}; ffn {ffn}"
    quality = "-" if text is None else f"{text:.3f}"
    return [layout, milliseconds(costs[latency]), f"{costs[memory]:.4g}", recall, quality, evidence]


def _unit(metric: str) -> str:
    return "ms" if "_ms@" in metric else "MB" if "_mb" in metric else "parameters"


def print_unreachable(result: SearchResult) -> None:
    """Each budget: what any layout reaches, what would be enough, and what the layout nearest to all of them has."""
    rows = [
        [
            entry["budget"],
            f"{entry['best_reachable']:.6g}",
            f"{entry['enough']:.6g}" if "enough" in entry else "-",
            f"{entry['nearest_layout']:.6g}",
        ]
        for entry in result.unreachable.values()
    ]
    stdout.print(table(["budget", "best reachable", "enough alone", "nearest layout"], rows))
    if result.nearest is not None:
        stdout.print(f"nearest layout: {result.nearest.pattern}", style="dim")
