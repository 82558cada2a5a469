"""Commands that measure: profile and bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archsearch.cli.app import DeviceOption, DevicesOption, JsonOption, RunOption, app, print_json

if TYPE_CHECKING:
    from archsearch.bench import Target
    from archsearch.predict import CostTable
    from archsearch.store import Store
    from archsearch.workload import Workload


@app.command(epilog="Example: archsearch profile examples/demo.toml --run runs/demo --device local")
def profile(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A space file.")],
    run: RunOption,
    device: DevicesOption = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Measure again what failed before.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Measure the space's blocks on devices; goes on where it was stopped."""
    from archsearch.cli.progress import show, side_by_side
    from archsearch.cli.tables import stderr
    from archsearch.emulated import usable
    from archsearch.fleet import profile_all, refuse_twins
    from archsearch.run import claim, keep_limits
    from archsearch.space import Space
    from archsearch.store import Store
    from devices import open_device

    ids = list(dict.fromkeys(device or ["local"]))
    Space.read(space)  # complaints about the space first; and nothing is written before the devices are known to be there
    opened = {device_id: open_device(device_id) for device_id in ids}
    refuse_twins(opened)
    parsed = claim(run, space)
    with side_by_side("profile", ids) as bars:
        for device_id, event in profile_all(parsed, run, opened, retry_failed=retry_failed):
            show(bars[device_id], event)
    for device_id, target in opened.items():
        keep_limits(run, device_id, target, parsed.threads)
    with Store(run / "measurements.db") as store:
        rows = [row for target in opened.values() for row in store.rows(fingerprint=target.info.fingerprint)]
        began_hot = {device_id: _began_hot(store, target.info.fingerprint) for device_id, target in opened.items()}
    rows = [row for row in rows if row.purpose in ("latency", "memory") and (row.subject["kind"] != "model" or row.mixed)]
    names = {target.info.fingerprint: device_id for device_id, target in opened.items()}
    failures = [
        {
            "device": names[row.fingerprint],
            "label": row.subject["label"],
            "workload": row.workload.label,
            "reason": row.reason or "",
            "detail": row.detail or "",
        }
        for row in rows
        if row.status == "failed"
    ]
    done = sum(row.status == "done" for row in rows)
    if json_output:
        partial = len(rows) - done - len(failures)
        flagged = {device_id: count for device_id, (count, _) in began_hot.items()}
        print_json({"run": str(run), "devices": ids, "measurements": done, "partial": partial, "failed": failures, "flagged": flagged})
    else:
        for device_id, target in opened.items():
            if usable(target.info.extra):
                print_profile(run, device_id, parsed, several=len(ids) > 1)
            else:
                stderr.print(f"{device_id} is emulated: its times are kept, marked as such, and not shown", style="yellow")
        for device_id, (count, total) in began_hot.items():
            if count:
                line = f"{device_id}: flagged: {count} of {total} processes began hot or throttled; cool it, and profile into another --run"
                stderr.print(line, style="yellow")
        said = f"; {len(failures)} failed, see above" if failures else ""
        stderr.print(f"{done} measurements in {run / 'measurements.db'}{said}", style="dim")
    if rows and done == 0:
        raise typer.Exit(1)


def _began_hot(store: Store, fingerprint: str) -> tuple[int, int]:
    """How many of a device's processes began too hot, and how many there are."""
    from archsearch.series import heat

    own = [entry for entry in store.conditions().values() if entry["fingerprint"] == fingerprint]
    return sum(bool(heat(entry)) for entry in own), len(own)


def print_profile(run: Path, device_id: str, space: Any, *, several: bool = False) -> None:
    """Decode and prefill time of every block."""
    from rich.text import Text

    from archsearch.cases import block_label
    from archsearch.cli.tables import FAMILY_STYLES, interval, milliseconds, stdout, table
    from archsearch.errors import MissingMeasurement
    from archsearch.run import load_table
    from operators.kinds import operator_for

    costs = load_table(run, device_id)
    workloads = space.workloads(space.precision, space.threads)
    for dims in space.all_dims:
        rows = []
        for block in space.blocks:
            cells: list[str | Text] = [Text(block_label(block), style=FAMILY_STYLES.get(operator_for(block.operator).family, ""))]
            for workload in workloads:
                try:
                    estimate = costs.block(block, dims, workload)
                    spread = interval(estimate.value, estimate.low, estimate.high)
                    cells.append(f"{milliseconds(estimate.value)} {spread}".rstrip())
                except MissingMeasurement:
                    cells.append("failed")
            rows.append(cells)
        title = f"ms a block at hidden size {dims.hidden_size}, {space.precision}, {space.threads} thread(s), with 90 % interval"
        title = f"{device_id}: {title}" if several else title
        stdout.print(table(["block", *(workload.label for workload in workloads)], rows, title=title))


@app.command(epilog="Example: archsearch bench runs/demo/export/model.onnx --device local --run runs/demo")
def bench(
    path: Annotated[Path, typer.Argument(metavar="SPEC|CHECKPOINT|MODEL.onnx", help="What to measure.")],
    device: DeviceOption = "local",
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Predict it too, from this run; and keep the measurement there.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, int8, int4 or int4g128; default: the run's, else int4.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: the run's, else 1.")] = None,
    prefill: Annotated[
        list[int] | None, typer.Option("--prefill", min=1, metavar="TOKENS", help="May be repeated; default: the run's, else 512.")
    ] = None,
    decode: Annotated[
        list[int] | None, typer.Option("--decode", min=0, metavar="CONTEXT", help="May be repeated; default: the run's, else 1024, 4096.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure a whole model; with --run also predict it."""
    import contextlib
    import tempfile

    from archsearch.bench import BenchResult
    from archsearch.bench import bench as measure
    from archsearch.cli.inspect_commands import print_document
    from archsearch.cli.progress import show, stage
    from archsearch.run import keep_bench, load_table
    from devices import open_device

    opened = open_device(device)
    table = load_table(run, device) if run is not None else None
    with contextlib.ExitStack() as stack:
        directory = run if run is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="archsearch-")))
        target, workloads = _what(path, directory, table, precision, threads, prefill, decode)
        result = BenchResult()
        with stage("bench") as bar:
            for event in measure(target, opened, workloads, run_dir=directory, table=table, device_id=device, result=result):
                show(bar, event)
        if run is not None:
            keep_bench(run, device, result.document)
    print_json(result.document) if json_output else print_document(result.document)


def _what(
    path: Path,
    directory: Path,
    table: CostTable | None,
    precision: str | None,
    threads: int | None,
    prefill: list[int] | None,
    decode: list[int] | None,
) -> tuple[Target, list[Workload]]:
    """The target, and the workloads it is measured at."""
    from archsearch.bench import DEFAULT_WORKLOADS, onnx_target, spec_target
    from archsearch.checkpoint import Checkpoint, is_checkpoint
    from archsearch.errors import InputError
    from archsearch.spec import ArchSpec
    from archsearch.workload import Workload
    from operators.specs import PRECISIONS

    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a spec, a checkpoint folder, or an ONNX file")
    if precision is not None and precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: not one of {', '.join(PRECISIONS)}")
    onnx = path if path.suffix == ".onnx" else path / "model.onnx" if path.is_dir() and (path / "model.onnx").exists() else None
    made = onnx_target(onnx) if onnx is not None else None
    if made is not None and precision is not None and precision not in made.files:
        raise InputError(f"{path}: is {', '.join(made.files)} and cannot be measured in {precision}")
    first = table.primary if table is not None else ("int4", 1, 1)
    chosen: Any = next(iter(made.files)) if made is not None else precision or first[0]
    count = threads or first[1]
    if prefill or decode:
        workloads = [Workload(phase="prefill", tokens=tokens, context=0, precision=chosen, threads=count) for tokens in prefill or []]
        workloads += [Workload(phase="decode", tokens=1, context=context, precision=chosen, threads=count) for context in decode or []]
    else:
        known = table.workloads() if table is not None else DEFAULT_WORKLOADS
        wanted = dict.fromkeys((w.phase, w.tokens, w.context) for w in known if w.batch == 1)
        workloads = [Workload(phase=p, tokens=t, context=c, precision=chosen, threads=count) for p, t, c in wanted]
    if made is not None:
        return made, workloads
    max_context = max(workload.cache for workload in workloads) + 1
    if is_checkpoint(path):
        checkpoint = Checkpoint.open(path)
        return spec_target(
            checkpoint.spec, [chosen], directory / "bench-models", max_context=max_context, weights=checkpoint.weights()
        ), workloads
    if path.is_dir():
        advice = "; archsearch import makes a checkpoint of what transformers saved" if (path / "config.json").is_file() else ""
        raise InputError(f"{path}: holds neither a checkpoint nor a model.onnx{advice}")
    if path.suffix == ".gguf":
        raise InputError(f"{path}: is for llama.cpp, whose llama-bench times it; here a checkpoint, a spec or an ONNX file is measured")
    return spec_target(ArchSpec.read(path), [chosen], directory / "models", max_context=max_context), workloads
