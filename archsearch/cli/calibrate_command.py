"""The command that holds predictions against whole models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from archsearch.cli.app import DeviceOption, JsonOption, RunOption, app, print_json

if TYPE_CHECKING:
    from archsearch.calibration import CalibrationCard


@app.command(epilog="Example: archsearch calibrate --run runs/demo --device local")
def calibrate(
    run: RunOption,
    device: DeviceOption = "local",
    layouts: Annotated[int, typer.Option("--layouts", min=1, help="Held-out layouts to build and measure.")] = 12,
    memory_layouts: Annotated[int, typer.Option("--memory-layouts", min=0, help="Of these, how many in a fresh process for memory.")] = 4,
    passes: Annotated[int, typer.Option("--passes", min=1, help="Fresh processes for each group of layouts.")] = 2,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Shuffled rounds in each process.")] = 6,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other layouts.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure anew in place of going on with what is there.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Measure held-out whole models beside the table's chains: how far can predictions be trusted?"""
    from archsearch.calibrate import CalibrateResult
    from archsearch.calibrate import calibrate as measure
    from archsearch.cli.progress import show, stage
    from archsearch.cli.tables import stderr
    from archsearch.errors import InputError
    from archsearch.run import load_table
    from archsearch.space import Space
    from devices import open_device

    kept = run / "space.toml"
    if not kept.exists():
        raise InputError(f"{run}: not a run; `archsearch profile SPACE --run {run}` makes one")
    table = load_table(run, device)
    result = CalibrateResult()
    with stage("calibrate") as bar:
        for event in measure(
            Space.read(kept),
            run,
            open_device(device),
            table,
            layouts=layouts,
            memory_layouts=memory_layouts,
            passes=passes,
            rounds=rounds,
            seed=seed,
            again=again,
            result=result,
        ):
            show(bar, event)
    assert result.card is not None
    if json_output:
        print_json(result.card.to_dict())
        return
    print_card(result.card)
    stderr.print(f"written to {run / 'calibration.json'}; predictions of this run now state intervals that cover this", style="dim")


def print_card(card: CalibrationCard) -> None:
    """Errors of latency by workload, then of memory."""
    from archsearch.cli.tables import stdout, table

    def percent(value: float | None, *, sign: bool = False) -> str:
        return "-" if value is None else f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"

    def whole(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.0f}"

    rows = []
    for line in card.summary():
        rank = line["rank_correlation"]
        label = line["workload"] + ("*" if line["interpolated"] else "")
        rows.append(
            [
                label,
                f"{line['precision']} {line['threads']}T",
                percent(line["median"]),
                percent(line["p95"]),
                percent(line["worst"]),
                percent(line["bias"], sign=True),
                "-" if rank is None else f"{rank:.2f}",
                whole(line["coverage"]) + (f">{whole(line['coverage_widened'])}" if line["tested"] else ""),
                f"{line['drift_low']:.2f}-{line['drift_high']:.2f}",
            ]
        )
    columns = ["workload", "", "p50", "p95", "max", "bias", "rank", "cover", "drift"]
    title = f"Error of predictions for {len(card.layouts)} held-out layouts, per cent"
    stdout.print(table(columns, rows, title=title, numbers_from=2))
    note = "p50, p95, max: of |error|; cover: by the stated 90 % intervals, > and as an earlier calibration widened them"
    stdout.print(note + ("; *: context interpolated" if any(line["interpolated"] for line in card.summary()) else ""), style="dim")
    left_out = sum(line["left_out"] for line in card.summary())
    missing = sum(len(card.layouts) - line["layouts"] for line in card.summary())
    if left_out or missing:
        said = f"left out: {left_out} measurements of a model in a process that had drifted or was in another state than its fastest"
        stdout.print(said + (f"; {missing} models at a workload as a whole" if missing else ""), style="dim")
    memory = [
        [f"{line['phase']} peak", line["precision"], percent(line["median"]), percent(line["worst"]), percent(line["bias"], sign=True)]
        for line in card.memory_summary()
    ]
    if memory:
        stdout.print()
        stdout.print(table(["memory", "", "median", "worst", "bias"], memory, numbers_from=2))
