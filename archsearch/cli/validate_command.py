"""The command that tests the quality signal itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from archsearch.cli.app import JsonOption, RunOption, app, print_json


@app.command(epilog="Example: archsearch validate examples/validate.toml --run runs/validate --equal-parameters")
def validate(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space file.")],
    run: RunOption,
    layouts: Annotated[int, typer.Option("--layouts", min=4, metavar="N", help="Held-out layouts; fewer than 16 tell little.")] = 16,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Trainings of each layout in the reference.")] = 2,
    longer: Annotated[
        float, typer.Option("--longer", min=1, metavar="X", help="Steps of the reference, as a multiple of the search's own.")
    ] = 3.0,
    supernet_steps: Annotated[
        int | None, typer.Option("--supernet-steps", min=0, metavar="N", help="Of T2; 0 leaves it out. Default: 8 times those on text.")
    ] = None,
    equal: Annotated[
        bool, typer.Option("--equal-parameters", help="Give all layouts as many parameters, by the widths of their FFNs.")
    ] = False,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="TASK", help="recall, text, selective_copy, noisy_recall; repeatable. Default: recall and text."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, metavar="N", help="Trainings side by side on this machine. Default: one a core.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="URL", help="Where `archsearch worker URL` may help to train.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """How well do the small trainings rank layouts of this space? Tests them against longer ones; goes on where it was stopped."""
    from archsearch.cli.progress import stage
    from archsearch.cli.tables import stderr
    from archsearch.errors import InputError
    from archsearch.files import write_atomic
    from archsearch.quality.tasks import ALL_TASKS, TASKS
    from archsearch.run import claim, make_evaluator
    from archsearch.validate import document_of, make_plan, score_by_supernet, train_plan

    if workers == 0 and not storage:
        raise InputError("--workers 0 leaves all training to others, who need a --storage that they can reach; give one")
    unknown = [name for name in task or [] if name not in ALL_TASKS]
    if unknown:
        raise InputError(f"--task {unknown[0]}: no such task; one of {', '.join(ALL_TASKS)}")
    tasks = [known for known in ALL_TASKS if known in (task or TASKS)]
    parsed = claim(run, space)
    plan = make_plan(parsed, layouts=layouts, seeds=seeds, longer=longer, equal=equal, tasks=tasks)
    scores = run / "supernet.json"
    steps = 8 * plan.cheap.text_steps if supernet_steps is None else supernet_steps
    with make_evaluator(run, plan.cheap, seed=plan.cheap_seed, storage=storage, workers=workers) as evaluator:
        with stage("validate") as bar:
            for event in train_plan(plan, evaluator):
                bar.update(event.done, event.total, note=event.label, seconds_left=event.seconds_left)
        one_depth = len({len(spec.layers) for spec in plan.layouts}) == 1
        if steps and one_depth and "text" in tasks:
            with stage("supernet") as bar:
                for step in score_by_supernet(plan, scores, steps):
                    bar.update(step.step, step.steps, note=f"{step.bits_per_byte:.3f} bits/byte")
        elif steps and "text" in tasks:
            stderr.print("T2 is left out: a supernet has one depth, and these layouts have several", style="yellow")
        document = document_of(plan, evaluator, scores, space_id=parsed.space_id)
    write_atomic(run / "validation.json", json.dumps(document, indent=2) + "\n")
    if json_output:
        print_json(document)
    else:
        print_validation(document)


def print_validation(document: dict[str, Any]) -> None:
    from archsearch.cli.tables import stdout, table

    for task, found in document["tasks"].items():
        reference = found["reference"]
        digits = 3 if task == "text" else 0

        def row(name: str, entry: dict[str, Any], cpu_s: float | None = None, digits: int = digits) -> list[str]:
            tau, low, high = (entry[key] for key in ("tau", "low", "high"))
            return [
                name,
                "-" if tau is None else f"{tau:+.2f}",
                "-" if low is None else f"{low:+.2f} … {high:+.2f}",
                f"{entry['regret_1']:.{digits}f}",
                f"{entry['regret_3']:.{digits}f}",
                "-" if cpu_s is None else f"{cpu_s:.0f}",
            ]

        rows = [row(f"{tier['tier']}  {tier['verdict']}", tier, tier["cpu_s"]) for tier in found["tiers"]]
        if found["ceiling"]:
            rows.append(row("another seed of it", found["ceiling"]))
        if found["most_parameters"]:
            rows.append(row("most parameters first", found["most_parameters"]))
        rows.append(row("at random", found["random"]))
        span = f"{reference['best']:.{digits}f} to {reference['worst']:.{digits}f} {found['unit']}"
        seeds = len(document["seeds"]["reference"])
        each = f"{seeds} seeds each" if seeds > 1 else "one seed each"
        sentence = f"{task}: {len(document['layouts'])} layouts, {reference['steps']} steps, {each}: {span}"
        if reference["unresolved"]:
            sentence += f"; {reference['unresolved']} unresolved by any seed, which count as equal"
        stdout.print(sentence, style="bold")
        stdout.print(table(["against it", "tau-b", "90 %", "regret 1", "of 3", "CPU s"], rows))
    equal = "equal" if document["equal_parameters"] else "unequal"
    low, high = document["parameters"]["least"], document["parameters"]["most"]
    stdout.print(f"parameters of the copies: {equal}, {low:,} to {high:,}; tokens of a tier: equal for all layouts", style="dim")
