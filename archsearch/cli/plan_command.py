"""The command that says how long to train a spec."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from archsearch.cli.app import JsonOption, app, print_json


@app.command(epilog="Example: archsearch plan examples/lfm2-350m.toml --tokens 28T --inference-tokens 100T")
def plan(
    path: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file.")],
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="D", help="Training tokens: 28T, 300B, 2M, 1e12; or --budget-flops.")
    ] = None,
    budget_flops: Annotated[
        str | None, typer.Option("--budget-flops", metavar="C", help="Training compute, of which the tokens are C / (6 N): 6e22, 60Z.")
    ] = None,
    inference_tokens: Annotated[
        str | None,
        typer.Option(
            "--inference-tokens", metavar="T", help="Tokens read and written over its life; alone: train until this size is right for them."
        ),
    ] = None,
    law: Annotated[
        list[str] | None,
        typer.Option("--law", metavar="NAME", help="besiroglu, hoffmann (both by default), hoffmann-tex, sardana; may be repeated."),
    ] = None,
    parameters: Annotated[
        Literal["total", "non-embedding"] | None, typer.Option("--parameters", help="What N counts; default: what each law's fit counted.")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", metavar="NAME", help="a100, h100 (default), h200, b200, mi300x, tpu-v5e, tpu-v6e.")
    ] = None,
    peak_tflops: Annotated[
        float | None, typer.Option("--peak-tflops", metavar="P", help="Of another accelerator: 10^12 FLOP a second, dense.")
    ] = None,
    mfu: Annotated[float, typer.Option("--mfu", metavar="SHARE", help="Share of the peak that is reached.")] = 0.4,
    sequence: Annotated[
        int, typer.Option("--sequence", min=1, help="Tokens of a training sequence: attention costs more in long ones.")
    ] = 2048,
    t2: Annotated[
        Path | None, typer.Option("--t2", metavar="FILE", help="Constants of T² (training and repeated sampling), which you have fitted.")
    ] = None,
    query_flops: Annotated[
        str | None, typer.Option("--query-flops", metavar="C", help="T²: what one query may cost, over all its samples.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Keep the plan in a run directory, for its report.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Ask scaling laws how long to train a spec, what overtraining costs, and when it pays off."""
    from archsearch.errors import InputError
    from archsearch.overtraining import T2File
    from archsearch.overtraining import plan as answer
    from archsearch.overtraining.answers import keep
    from archsearch.overtraining.cost import DEFAULT_ACCELERATOR, Accelerator, accelerator_named
    from archsearch.overtraining.laws import DEFAULT_LAWS
    from archsearch.overtraining.quantities import parse_count
    from archsearch.spec import ArchSpec

    def count(text: str | None, option: str) -> float | None:
        return None if text is None else parse_count(text, option)

    if peak_tflops is not None:
        if accelerator is not None:
            raise InputError("--accelerator and --peak-tflops say the same thing twice; give one of them")
        if not peak_tflops > 0:
            raise InputError(f"--peak-tflops must be above 0, got {peak_tflops:g}")
        device = Accelerator("accelerator", peak_tflops, "--peak-tflops")
    else:
        device = accelerator_named(accelerator or DEFAULT_ACCELERATOR)
    found = answer(
        ArchSpec.read(path),
        tokens=count(tokens, "--tokens"),
        budget_flops=count(budget_flops, "--budget-flops"),
        inference_tokens=count(inference_tokens, "--inference-tokens"),
        laws=law or DEFAULT_LAWS,
        counted=parameters,
        sequence=sequence,
        accelerator=device,
        mfu=mfu,
        t2=None if t2 is None else T2File.read(t2),
        query_flops=count(query_flops, "--query-flops"),
    )
    kept = None if run is None else keep(found, run)
    if json_output:
        print_json(found.to_dict())
        return
    from archsearch.cli.plan_tables import print_plan
    from archsearch.cli.tables import stderr

    print_plan(found)
    if kept is not None:
        stderr.print(f"written to {kept}; `archsearch report --run {run} --out FILE.html` draws it", style="dim", markup=False)
