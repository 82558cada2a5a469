"""The command that lends a machine to searches that run elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from archsearch.cli.app import JsonOption, app, print_json


@app.command(epilog="Example: archsearch worker postgresql://search@db.example/archsearch --workers 8")
def worker(
    storage: Annotated[str, typer.Argument(metavar="URL", help="The --storage of the search: postgresql://…, or sqlite:///FILE.")],
    workers: Annotated[int | None, typer.Option("--workers", min=1, metavar="N", help="Processes; default: one a core.")] = None,
    idle: Annotated[
        float | None, typer.Option("--idle", min=0, metavar="SECONDS", help="End after so long without work; default: wait for more.")
    ] = None,
    heartbeat: Annotated[
        int, typer.Option("--heartbeat", min=1, metavar="SECONDS", help="Between signs of life; who comes first decides for all.")
    ] = 20,
    wait: Annotated[bool, typer.Option("--wait", help="Start before the search: wait for one in a database that holds none yet.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Train for searches on other machines: takes work from a shared storage until stopped."""
    import os
    import time

    from archsearch.cli.tables import stderr
    from archsearch.search.queue import TrainingQueue, check_shared
    from archsearch.search.storage import require_search
    from archsearch.search.worker import LocalWorkers

    check_shared(storage)
    if not wait:
        require_search(storage)  # a mistyped URL would be a new database, and an endless wait
    queue = TrainingQueue(storage, heartbeat_s=heartbeat)  # a wrong URL is one line here, not one from every process
    count = workers or os.cpu_count() or 1
    stderr.print(f"{count} worker{'s' if count > 1 else ''}; Ctrl-C stops them and hands on what they have not finished", style="dim")
    counts = {"trained": 0, "failed": 0, "late": 0}
    began = time.monotonic()
    try:
        with LocalWorkers(queue.url, count, heartbeat_s=heartbeat, idle_s=idle) as crew:
            while (events := crew.events(timeout_s=0.5)) is not None:
                for event in events:
                    if event.outcome:
                        counts[event.status] += 1
                        stderr.print(
                            f"{sum(counts.values()):>5}  {event.task} of {event.pattern}, seed {event.seed}: {event.outcome}", markup=False
                        )
    except KeyboardInterrupt:
        stderr.print("stopped; what was not finished is left to others", style="dim")
    if json_output:
        print_json(counts | {"seconds": round(time.monotonic() - began, 1)})
