"""The command that compares two files of measurements."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from archsearch.cli.app import JsonOption, app, print_json

if TYPE_CHECKING:
    from archsearch.compare import Comparison

Sort = Literal["measured", "ratio"]
SHORT = {"no difference shown": "not shown", "too few rounds": "too few"}
"""Verdicts as the table says them, for which 80 columns leave little room; --json has them in full."""


@app.command(epilog="Example: archsearch compare runs/before runs/after --across runtime")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder or a measurements.db.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    across: Annotated[
        list[str] | None, typer.Option("--across", metavar="CONDITION", help="device, runtime, huge_pages, ...: meant to differ.")
    ] = None,
    device_a: Annotated[str | None, typer.Option("--device-a", metavar="ID", help="Which device of A, where it holds several.")] = None,
    device_b: Annotated[str | None, typer.Option("--device-b", metavar="ID", help="Which device of B.")] = None,
    sort: Annotated[Sort, typer.Option("--sort", help="ratio: where B lost most first.")] = "measured",
    json_output: JsonOption = False,
) -> None:
    """Ratios with intervals between two runs of the same space; refuses runs whose conditions differ."""
    from archsearch.compare import compare as pair_up
    from archsearch.compare import load_side

    found = pair_up(load_side(a, device_a), load_side(b, device_b), across=across or ())
    if sort == "ratio":
        found = replace(found, pairs=tuple(sorted(found.pairs, key=lambda pair: -pair.ratio)))
    if json_output:
        print_json(found.to_dict())
    else:
        print_comparison(found)


def print_comparison(found: Comparison) -> None:
    """One line a pair, then the geometric mean."""
    from archsearch.cli.tables import milliseconds, stderr, stdout, table

    settings = sorted({f"{pair.workload.precision} {pair.workload.threads}T" for pair in found.pairs})
    rows = [
        [
            pair.label + (f" x{pair.copies}" if pair.copies > 1 else ""),
            pair.workload.label + (f" {pair.workload.precision} {pair.workload.threads}T" if len(settings) > 1 else ""),
            milliseconds(pair.a_ms),
            milliseconds(pair.b_ms),
            f"{pair.ratio:.3f}",
            f"{pair.low:.2f}-{pair.high:.2f}",
            SHORT.get(pair.verdict, pair.verdict),
        ]
        for pair in found.pairs
    ]
    title = f"B beside A, {', '.join(settings)}: ms a copy, B/A with its 90 % interval"
    stdout.print(table(["what", "workload", "A", "B", "B/A", "", "B is"], rows, title=title, numbers_from=2))
    stdout.print(f"geometric mean of the ratios: {found.mean:.3f} ({found.mean_low:.3f}-{found.mean_high:.3f})")
    if found.memory:
        ratios = sorted(pair.ratio for pair in found.memory)
        middle = statistics.median(ratios)
        stdout.print(f"peak memory of {len(ratios)} processes, B/A: median {middle:.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")
    notes = {"no difference shown": "not shown: no difference shown", "too few rounds": "too few: rounds, to tell"}
    if said := [note for verdict, note in notes.items() if any(pair.verdict == verdict for pair in found.pairs)]:
        stdout.print("; ".join(said), style="dim")
    for name, (one, two) in found.differs.items():
        stdout.print(f"{name}: {one} in A, {two} in B", style="dim")
    if found.only_a or found.only_b:
        stderr.print(f"left out, since only one side has them: {found.only_a} of A, {found.only_b} of B", style="dim")
    if any(found.other_runtimes):
        old_a, old_b = found.other_runtimes
        stderr.print(f"left out, since measured with another version of the runtime: {old_a} of A, {old_b} of B", style="dim")
