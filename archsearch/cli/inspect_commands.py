"""Commands that look: devices, spec, predict, report, merge."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from archsearch.cli.app import DeviceOption, JsonOption, RunOption, app, print_json

if TYPE_CHECKING:
    from devices import DeviceInfo


@app.command(epilog="Examples: archsearch devices · archsearch devices --device adb:192.168.1.7:5555")
def devices(
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="ID", help="Ask this phone, too: adb:HOST:PORT of one that no adb server knows. May be repeated."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """List this machine and the phones that are attached."""
    from devices import list_devices

    found = list_devices([name for name in device or () if name != "local"])
    if json_output:
        print_json({"devices": [asdict(info) for info in found]})
        return
    from archsearch.cli.tables import stderr, stdout, table

    rows = [[info.device_id, _what_it_is(info), info.runtime or "-", "ready" if info.available else "not ready"] for info in found]
    stdout.print(table(["device", "what it is", "runtime", "state"], rows, numbers_from=9))
    for info in found:
        if info.problem:  # a line of its own: it says what to do next, which a narrow column would tear
            whose = "" if info.problem.startswith(info.device_id) else f"{info.device_id}: "
            stdout.print(f"{whose}{info.problem}", style="yellow", markup=False)
    if not any(info.device_id.startswith("adb:") for info in found):
        stderr.print(NO_PHONE, style="dim")


NO_PHONE = (
    "No phone: with USB debugging on, one on a cable shows after `adb start-server`; one on the network is "
    "--device adb:HOST:PORT. From a drawer to a report: docs/phones.md"
)


def _what_it_is(info: DeviceInfo) -> str:
    """A device in a few words; of a phone also its model and its Android, since its processor's name tells few people anything."""
    if not info.cores:
        return info.name
    size = f"{info.cores} cores, {info.memory_bytes / 2**30:.0f} GiB"
    if not info.device_id.startswith("adb:"):
        return f"{info.cpu}, {size}"
    chip = f" ({info.cpu})" if info.cpu else ""
    return f"{info.name}{chip}, {size}, {info.system}"  # which says whether it is emulated


@app.command(epilog="Example: archsearch spec examples/lfm2-350m.toml --to hf")
def spec(
    path: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file, TOML or JSON.")],
    to: Annotated[
        Literal["toml", "json", "hf"] | None, typer.Option("--to", help="Print the spec in another format: toml, json, hf.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check a spec, and show where its parameters go; or convert it."""
    import json

    from archsearch.budget import parameter_budget
    from archsearch.hf import to_hf_config
    from archsearch.spec import ArchSpec

    parsed = ArchSpec.read(path)
    if to is not None:
        match to:
            case "toml":
                typer.echo(parsed.to_toml(), nl=False)
            case "json":
                typer.echo(parsed.to_json(), nl=False)
            case "hf":
                typer.echo(json.dumps(to_hf_config(parsed), indent=2))
        return
    budget = parameter_budget(parsed)
    if json_output:
        print_json(
            {"name": parsed.name, "spec_id": parsed.spec_id, "parameters": budget.total, "embedding_share": budget.embedding_share}
            | {"parts": dict(budget.parts), "pattern": parsed.pattern, "spec": parsed.to_dict()}
        )
        return
    from archsearch.cli.tables import count, share, stdout, table

    stdout.print(
        f"[bold]{parsed.name}[/] · {parsed.spec_id} · {len(parsed.layers)} layers × {parsed.hidden_size} · vocabulary {parsed.vocab_size:,}"
    )
    stdout.print(parsed.pattern)
    rows = [[part, f"{n:,}", share(budget.shares[part])] for part, n in budget.parts.items()]
    rows.append(["total", f"{budget.total:,}", count(budget.total)])
    stdout.print(table(["part", "parameters", "share"], rows))
    stdout.print(
        f"Embeddings take {share(budget.embedding_share)}; `python -m archsearch.budget` shows it beside published models.", style="dim"
    )


@app.command(epilog="Example: archsearch predict runs/demo/spec.toml --run runs/demo --device local")
def predict(
    path: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file.")],
    run: RunOption,
    device: DeviceOption = "local",
    json_output: JsonOption = False,
) -> None:
    """Predict latency and memory of a spec from a run's measurements."""
    from archsearch.run import load_table
    from archsearch.spec import ArchSpec

    document = load_table(run, device).document(ArchSpec.read(path))
    print_json(document) if json_output else print_document(document)


def print_document(document: dict[str, Any]) -> None:
    """The document of `predict` and `bench` as tables."""
    from archsearch.cli.tables import count, interval, milliseconds, stdout, table

    parameters = f" · {count(document['parameters'])} parameters" if document["parameters"] else ""
    stdout.print(f"[bold]{document['name']}[/] on {document['device']}{parameters}")
    measured = any(row["measured_ms"] is not None for row in document["workloads"])
    rows = []
    for row in document["workloads"]:
        what = f"decode@{row['context']}" if row["phase"] == "decode" else f"prefill@{row['tokens']}"
        setting = f"{row['precision']}, {row['threads']}T" + (f", batch {row['batch']}" if row["batch"] > 1 else "")
        beyond = "*" if row.get("extrapolated") else ""
        cells = [what + beyond, setting, milliseconds(row["predicted_ms"]), interval(row["predicted_ms"], row["low_ms"], row["high_ms"])]
        if measured:
            cells += [
                milliseconds(row["measured_ms"]),
                milliseconds(row["measured_p95_ms"]),
                error(row["predicted_ms"], row["measured_ms"]),
            ]
        rows.append(cells)
    columns = ["workload", "setting", "predicted ms", "90 %"] + (["measured ms", "p95", "error"] if measured else [])
    stdout.print(table(columns, rows, numbers_from=2))
    if any(row.get("extrapolated") for row in document["workloads"]):
        stdout.print("*: beyond the measured lengths; the interval does not know of that. Profile there to be sure.", style="dim")
    if document["memory"]:
        rows = [
            [
                f"memory@{row['context']}",
                megabytes(row["predicted_mb"]),
                megabytes(row["measured_mb"]),
                error(row["predicted_mb"], row["measured_mb"]),
            ]
            for row in document["memory"]
        ]
        stdout.print(table(["peak memory", "predicted MB", "measured MB", "error"], rows))
    drifts = [row["drift"] for row in document["workloads"] if row.get("drift")]
    if drifts and max(abs(drift - 1) for drift in drifts) > 0.05:
        low, high = min(drifts), max(drifts)
        stdout.print(
            f"The same blocks took {low:.2f}-{high:.2f} times as long beside the model as when they were profiled: "
            "the machine has changed.",
            style="dim",
        )


def error(predicted: float | None, measured: float | None) -> str:
    """ "+3.1 %": the prediction was higher than what was measured."""
    return "-" if predicted is None or not measured else f"{100 * (predicted / measured - 1):+.1f} %"


def megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


@app.command(epilog="Example: archsearch report --run runs/demo --out report.html")
def report(
    run: RunOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Where the page goes.")],
    json_output: JsonOption = False,
) -> None:
    """Write a run's report: one HTML file that opens offline."""
    from archsearch.report import write_report

    write_report(run, out)
    if json_output:
        print_json({"report": str(out), "bytes": out.stat().st_size})
    else:
        typer.echo(out)


@app.command(epilog="Example: archsearch merge runs/all.db runs/laptop/measurements.db runs/phone/measurements.db")
def merge(
    into: Annotated[Path, typer.Argument(metavar="INTO.db", help="The file that receives; made if it is not there.")],
    sources: Annotated[list[Path], typer.Argument(metavar="FROM.db...", help="Measurements of other devices; not changed.")],
    json_output: JsonOption = False,
) -> None:
    """Bring measurements from other devices together; doing it twice adds nothing."""
    from archsearch.store import Store

    with Store(into) as store:
        added = store.merge(sources)
    if json_output:
        print_json({"into": str(into), "added": added})
    else:
        typer.echo(f"{into}: added {added['measurements']} measurements with {added['rounds']} rounds from {len(sources)} files")
