"""The command that names a winner, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from archsearch.cli.app import BudgetOption, DevicesOption, HoldOption, JsonOption, RunOption, app, print_json


@app.command(epilog="Example: archsearch confirm examples/demo.toml --run runs/demo --top 3 --controls 3")
def confirm(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space file.")],
    run: RunOption,
    device: DevicesOption = None,
    budget: BudgetOption = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Of the search's best layouts.")] = 3,
    controls: Annotated[int, typer.Option("--controls", min=0, metavar="N", help="Random layouts of the same budgets.")] = 3,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Trainings of each.")] = 2,
    longer: Annotated[float, typer.Option("--longer", min=1, metavar="X", help="Steps, as a multiple of the search's own.")] = 3.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, metavar="S", help="That the search had. Default: the space's.")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, metavar="N", help="Trainings side by side on this machine. Default: one a core.")
    ] = None,
    storage: Annotated[str | None, typer.Option("--storage", metavar="URL", help="The search's, if it had one.")] = None,
    hold: HoldOption = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="SPEC", help="A layout of the space that takes part, and is compared with.")
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option("--width", metavar="N", help="Then train all of them at this hidden size too, by the trainer; twice for two."),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--tokens-per-parameter", metavar="X", help="Of the trainings at --width; the target's. Default: 20.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Train the search's best layouts and random ones longer, from new seeds: only this names a winner. Goes on where it stopped."""
    from archsearch.budgets import parse_budget
    from archsearch.cli.progress import stage
    from archsearch.confirm import document_of, make_contest, standings, train_contest, verdict
    from archsearch.errors import InputError
    from archsearch.files import write_atomic
    from archsearch.run import claim, load_tables, make_searcher
    from archsearch.scale import ScaleSettings, run_scale
    from archsearch.scale import document_of as scale_document
    from archsearch.search.files import place_of_choice
    from archsearch.spec import ArchSpec
    from archsearch.train.settings import TOKENS_PER_PARAMETER

    if workers == 0 and not storage:
        raise InputError("--workers 0 leaves all training to others, who need a --storage that they can reach; give one")
    if ratio is not None and not width:
        raise InputError("--tokens-per-parameter is for trainings at a larger width; give --width 256 --width 512, say")
    budgets = [parse_budget(text) for text in budget or []]
    parsed = claim(run, space)
    table = load_tables(run, device or ["local"])
    scale = None
    if width:
        context = max(1, max(parsed.decode, default=4096))
        data = tuple(parsed.train.data)
        scale = ScaleSettings(widths=tuple(dict.fromkeys(width)), ratio=ratio or TOKENS_PER_PARAMETER, data=data, context=context)
    searcher = make_searcher(
        parsed, run, table, budgets, trials=None, seed=seed, storage=storage, workers=workers, baseline=baseline, held=hold or ()
    )
    contest = make_contest(searcher, top=top, controls=controls, seeds=seeds, longer=longer)
    with stage("confirm") as bar, searcher.evaluator:
        for event in train_contest(contest, searcher.evaluator):
            bar.update(event.done, event.total, note=event.label, seconds_left=event.seconds_left)
    document = document_of(contest, searcher.evaluator)
    document |= {"space_id": parsed.space_id, "budgets": [str(budget) for budget in searcher.budgets]}
    if scale is not None:
        with stage("scale") as bar:
            for at in run_scale(contest, scale, run):
                bar.update(at.done + (at.step / at.steps if at.steps else 0), at.total, note=at.label, count=f"{at.done}/{at.total}")
        document["scale"] = scale_document(contest, scale, run, document["winner"])
    write_atomic(run / "confirmation.json", json.dumps(document, indent=2) + "\n")
    winner, _ = verdict(standings(contest, searcher.evaluator))
    if winner is not None:
        from dataclasses import replace

        chosen = place_of_choice(run, winner.spec)
        kept = ArchSpec.read(chosen) if chosen.exists() else winner.spec
        origin = kept.origin if kept.spec_id == winner.spec.spec_id else {"study": searcher.study_name, "device": table.device}
        confirmed = {"why": document["why"], **winner.to_dict()}
        replace(winner.spec, name=parsed.name, origin={**origin, "confirmed": confirmed}).write(chosen)
    if json_output:
        print_json(document)
    else:
        print_standings(document)


def print_standings(document: dict[str, Any]) -> None:
    from archsearch.cli.tables import stdout, table

    rows = []
    synthetic = len(document["tasks"]) - 1
    for entry in document["standings"]:
        text = entry["text_bits_per_byte"]
        mark = "→ " if entry["spec_id"] == document["winner"] else "  "
        solved, spread = f"{entry['recall_solved']} of {synthetic * len(text)}", f"{min(text):.3f} … {max(text):.3f}"
        rows.append([mark + entry["pattern"], entry["from"], solved, f"{mean(text):.3f}", spread])
    stdout.print(table(["layout", "from", "recall solved", "bits/byte", "seeds"], rows))
    for entry in document["against_baseline"] or []:
        text = entry["text_bits_per_byte"]
        interval = "" if text["low"] is None else f" ({text['low']:+.3f} to {text['high']:+.3f})"
        recall = f", recall in {entry['recall_solved']:+d} trainings" if entry["recall_solved"] else ""
        stdout.print(f"{entry['pattern']} against the baseline: {text['mean']:+.3f} bits/byte{interval}{recall}: {entry['verdict']}")
    if document["winner"]:
        stdout.print(f"winner: {document['why']}")
    else:
        stdout.print(f"no winner: {document['why']}", style="yellow")
    steps = f"{document['recall_steps']} steps of recall and {document['text_steps']} of text"
    stdout.print(f"{steps}, 64-channel copies; not full width", style="dim")
    if document.get("scale"):
        print_scale(document["scale"])


def print_scale(document: dict[str, Any]) -> None:
    """T4, width by width."""
    from archsearch.cli.tables import stdout, table

    for found in document["widths"]:
        where = f"{found['tokens']:,} tokens each, {found['device']}, {found['dtype']}"
        stdout.print(f"width {found['width']}: {document['ratio']:g} tokens a parameter, {where}", style="bold")
        rows = []
        for entry in found["standings"]:
            values = entry["text_bits_per_byte"]
            spread = f"{min(values):.3f} … {max(values):.3f}"
            rows.append([entry["pattern"], entry["from"], f"{entry['parameters']:,}", f"{entry['mean']:.3f}", spread])
        stdout.print(table(["layout", "from", "parameters", "bits/byte", "seeds"], rows))
    for pair in document["agreement"]:
        tau = "-" if pair["tau"] is None else f"{pair['tau']:+.2f}"
        stdout.print(f"order at {pair['widths'][0]} against {pair['widths'][1]}: tau-b {tau}", style="dim")
    holds = {True: "holds at scale", False: "does not hold at scale", None: "at scale"}[document["holds"]]
    stdout.print(f"{holds}: {document['why']}", style="" if document["holds"] else "yellow")
