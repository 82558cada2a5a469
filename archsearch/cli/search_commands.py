"""Commands that search: search, and run, which does everything in turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archsearch.cli.app import BudgetOption, DevicesOption, HoldOption, JsonOption, RunOption, app, print_json

if TYPE_CHECKING:
    from archsearch.cli.progress import Bar

TrialsOption = Annotated[int | None, typer.Option("--trials", min=1, metavar="N", help="Layouts to train; default: the space's.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, metavar="S", help="Default: the space's.")]


@app.command(epilog="Example: archsearch search examples/demo.toml --run runs/demo --device local --budget 'decode_ms@4096<=0.8'")
def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space file.")],
    run: RunOption,
    device: DevicesOption = None,
    budget: BudgetOption = None,
    trials: TrialsOption = None,
    seed: SeedOption = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", metavar="URL", help="Another place for the study, where `archsearch worker URL` may help to train."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, metavar="N", help="Trainings side by side on this machine. Default: one a core.")
    ] = None,
    hold: HoldOption = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="SPEC", help="A layout of the space to train first and compare with.")
    ] = None,
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Answer from what is measured and trained; the default when all trials are done.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="First train again what failed or was killed twice.")] = False,
    certify: Annotated[bool, typer.Option("--certify", help="With --resolve: prove how much the inner search left.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Search the layout that is best within hard budgets; goes on where it was stopped."""
    from archsearch.budgets import parse_budget
    from archsearch.cli.progress import show, stage
    from archsearch.cli.search_tables import print_result, print_unreachable
    from archsearch.errors import InputError
    from archsearch.run import claim, infeasible, keep_result, load_tables, make_searcher
    from archsearch.search import resolve as answer
    from archsearch.search.files import place_of_choice

    budgets = [parse_budget(text) for text in budget or []]
    if workers == 0 and not storage:
        raise InputError("--workers 0 leaves all training to others, who need a --storage that they can reach; give one")
    parsed = claim(run, space)
    table = load_tables(run, device or ["local"])
    searcher = make_searcher(
        parsed, run, table, budgets, trials=trials, seed=seed, storage=storage, workers=workers, baseline=baseline, held=hold or ()
    )
    if retry and (resolve or certify):
        raise InputError("--retry trains and --resolve does not; give one of them")
    at_once = resolve or certify or (trials is None and not retry and searcher.finished())
    if at_once:
        result = answer(searcher, certified=certify)
    else:
        with stage("search") as bar, searcher.evaluator:
            for event in searcher.run(retry=retry):
                show(bar, event)
        result = searcher.result()
    chosen = place_of_choice(run, result.best.spec) if result.best is not None else None
    keep_result(run, searcher, result, chosen=chosen)
    if json_output:
        print_json(result.to_dict())
    elif result.feasible:
        print_result(result, searcher, chosen, trained_nothing=at_once)
    else:
        print_unreachable(result)
    if not result.feasible:
        if json_output:
            typer.echo(f"error: {infeasible(result)}", err=True)
            raise typer.Exit(1)
        raise infeasible(result)


@app.command(epilog="Example: archsearch run examples/demo.toml --run runs/demo")
def run(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space file.")],
    run: RunOption,
    device: DevicesOption = None,
    budget: BudgetOption = None,
    trials: TrialsOption = None,
    seed: SeedOption = None,
    json_output: JsonOption = False,
) -> None:
    """Every stage in turn: profile, search, train, measure again, report; goes on where it was stopped."""
    import contextlib
    import time

    from archsearch.budgets import parse_budget
    from archsearch.cli.inspect_commands import print_document
    from archsearch.cli.progress import show, side_by_side
    from archsearch.cli.tables import stderr, stdout
    from archsearch.run import STAGES, RunOutcome
    from archsearch.run import run as run_stages

    budgets = [parse_budget(text) for text in budget or []]
    outcome = RunOutcome()
    ids = list(dict.fromkeys(device or ["local"]))
    began = time.monotonic()
    with contextlib.ExitStack() as bars:
        lines: dict[str, Bar] = {}
        for event in run_stages(space, run, ids, budgets=budgets, trials=trials, seed=seed, outcome=outcome):
            if event.event is None:
                bars.close()
                number = STAGES.index(event.stage) + 1
                elapsed = time.monotonic() - began
                stderr.print(f"[bold cyan]{number}/{len(STAGES)}[/] {_WORDS[event.stage]} [dim]({elapsed / 60:.1f} min)[/]")
                lines = bars.enter_context(side_by_side(event.stage, ids if event.stage == "profile" else [""]))
            else:
                show(lines[event.device], event.event)
    if json_output:
        print_json(
            {
                "spec": outcome.spec.to_dict() if outcome.spec else None,
                "search": outcome.search.to_dict() if outcome.search else None,
                "bench": outcome.bench,
                "report": str(outcome.report),
            }
        )
        return
    if outcome.spec is not None:
        stdout.print(f"chosen layout: [bold]{outcome.spec.pattern}[/]  ({run / 'spec.toml'})")
    if outcome.bench is not None:
        print_document(outcome.bench)
    stdout.print(f"report: {outcome.report}  ({(time.monotonic() - began) / 60:.1f} minutes)")


_WORDS = {
    "profile": "measure the blocks",
    "search": "search layouts within the budgets",
    "check": "measure layouts of the front",
    "train": "train the chosen layout",
    "export": "export it, and compare with torch",
    "bench": "measure the trained model",
    "report": "write the report",
}
