"""The command that tells what to mend before measuring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from archsearch.cli.app import DeviceOption, JsonOption, app, print_json

if TYPE_CHECKING:
    from archsearch.doctor import Diagnosis


@app.command(epilog="Example: archsearch doctor --threads 2")
def doctor(
    device: DeviceOption = "local",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the test series.")] = 1,
    json_output: JsonOption = False,
) -> None:
    """Measure for some seconds: is this device steady, and what can be mended?"""
    from archsearch.cli.progress import show, stage
    from archsearch.doctor import Diagnosis, examine
    from devices import open_device

    diagnosis = Diagnosis()
    opened = open_device(device)
    with stage("doctor") as bar:
        for event in examine(opened, threads=threads, diagnosis=diagnosis):
            show(bar, event)
    print_json(diagnosis.to_dict()) if json_output else print_diagnosis(diagnosis)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """A line a finding, what mends it below, and the verdict."""
    from archsearch.cli.tables import stdout

    styles = {"ok": "green", "mend": "bold yellow", "note": "dim"}
    for finding in sorted(diagnosis.findings, key=lambda finding: list(styles).index(finding.mark), reverse=True):
        costs = f"; costs ±{finding.costs:.1%}" if finding.costs is not None else ""
        stdout.print(f"[{styles[finding.mark]}]{finding.mark:<5}[/] {finding.what}: {finding.said}{costs}")
        if finding.mend:
            stdout.print(f"      {finding.mend}", style="dim")
    stdout.print(f"\n{diagnosis.verdict}", style="bold")
