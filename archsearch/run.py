"""Every stage in turn: profile, search, check, train, export, bench, report. Each stage reads files that the one before wrote, does
only what is not done yet, and can be run alone by its own command.

A run directory holds space.toml, models/ (ONNX by content hash), measurements.db, study.db, quality.jsonl, limits.json,
search.json, spec.toml (the choice), front/, bench/ (documents), checkpoint/, export/ and report.html.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archsearch.bench import BenchResult, bench, onnx_target, spec_target
from archsearch.budgets import Budget, combine, parse_held
from archsearch.emulated import refuse, usable
from archsearch.errors import InputError, RunError
from archsearch.files import read_json, write_atomic
from archsearch.fleet import profile_all, refuse_twins
from archsearch.predict import CostTable
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.store import Store
from devices import Device, measure_limits, open_device

if TYPE_CHECKING:
    from archsearch.quality import Evaluator, QualitySettings
    from archsearch.quality.tasks import Task
    from archsearch.search import Searcher, SearchResult  # which imports torch
    from archsearch.search.devices import SearchTables

Stage = Literal["profile", "search", "check", "train", "export", "bench", "report"]
STAGES: tuple[Stage, ...] = ("profile", "search", "check", "train", "export", "bench", "report")
CHECKED_LAYOUTS = 3
"""Layouts of the front that are measured with random weights, beside the trained one, to see how good the predictions are."""


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """Something happened in a stage; `event` is None when the stage begins, else what the stage's own function yields."""

    stage: Stage
    event: Any = None
    device: str = ""
    """The device an event of the profile is about; devices are measured side by side."""


@dataclass(kw_only=True)
class RunOutcome:
    """What a run came to."""

    search: SearchResult | None = None
    spec: ArchSpec | None = None
    bench: dict[str, Any] | None = None
    report: Path | None = None


def claim(run_dir: Path, space_path: Path) -> Space:
    """Read a space and make the run directory its own.

    Raises:
        FileFormatError: the space file is wrong.
        InputError: the directory holds the run of another space, or is no directory.
    """
    space = Space.read(space_path)
    kept = run_dir / "space.toml"
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file, not a directory; choose another --run")
    if kept.exists() and Space.read(kept).space_id != space.space_id:
        raise InputError(f"{run_dir}: holds the run of another space ({kept}); choose another --run, or remove it")
    if not kept.exists() or kept.read_bytes() != space_path.read_bytes():
        write_atomic(kept, space_path.read_bytes())
    return space


def load_table(run_dir: Path, device_id: str) -> CostTable:
    """The cost table of a run.

    Raises:
        StoreError, MissingMeasurement: there is none, or not for that device.
    """
    with Store(run_dir / "measurements.db", create=False) as store:
        return CostTable.load(store, device=device_id)


def load_tables(run_dir: Path, device_ids: Sequence[str]) -> SearchTables:
    """The cost tables of several devices, for a search that keeps budgets on all of them.

    Raises:
        StoreError, MissingMeasurement: as `load_table`.
    """
    from archsearch.search.devices import SearchTables

    return SearchTables({device_id: load_table(run_dir, device_id) for device_id in dict.fromkeys(device_ids)})


def keep_limits(run_dir: Path, device_id: str, device: Device, threads: int) -> None:
    """Measure how fast the device can be at most, once a run, for the report's roof; raw samples in limits.json.

    Not where it is emulated: there is no roof to know.
    """
    if not usable(device.info.extra):
        return
    path = run_dir / "limits.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if device_id not in known:
        found = measure_limits(device, threads=(threads,))
        known[device_id] = [asdict(result) | {"per_second": result.per_second} for result in found]
        write_atomic(path, json.dumps(known) + "\n")


def make_evaluator(
    run_dir: Path, settings: QualitySettings, *, seed: int, storage: str | None, workers: int | None, tasks: Sequence[Task] = ("recall",)
) -> Evaluator:
    """Small trainings on this machine, or by whoever works on `storage`; their results are kept in the run directory."""
    from archsearch.quality import Evaluator
    from archsearch.search.shared import SharedEvaluator
    from archsearch.search.storage import is_database

    path = run_dir / "quality.jsonl"
    if storage and is_database(storage):
        return SharedEvaluator(path, settings, url=storage, seed=seed, workers=workers, tasks=(*tasks, "text"))
    return Evaluator(path, settings, seed=seed, workers=workers, tasks=(*tasks, "text"))


def make_searcher(
    space: Space,
    run_dir: Path,
    table: CostTable | SearchTables,
    budgets: Sequence[Budget],
    *,
    trials: int | None,
    seed: int | None,
    storage: str | None = None,
    workers: int | None = None,
    baseline: Path | None = None,
    held: Sequence[str] = (),
) -> Searcher:
    """A searcher with the space's settings where nothing else is said.

    Args:
        baseline: a spec to compare with; held: sizes that are held (`archsearch.budgets.parse_held`).
        storage: another place for the study than the run directory; where it is a database, workers anywhere may help.
        workers: processes of this machine that train; None: one a core.
    """
    from archsearch.quality import QualitySettings
    from archsearch.search import Searcher
    from archsearch.search.baseline import read_baseline
    from archsearch.search.devices import SearchTables
    from archsearch.search.sizes import sizes_of

    settings = space.search
    context = max(space.decode, default=4096)
    quality = QualitySettings(recall_steps=settings.recall_steps, text_steps=settings.text_steps, context=max(1, context))
    seed = settings.seed if seed is None else seed
    evaluator = make_evaluator(run_dir, quality, seed=seed, storage=storage, workers=workers, tasks=settings.tasks)
    if baseline is None and settings.baseline is not None:
        baseline = Path(settings.baseline)
    parent = read_baseline(baseline, space) if baseline is not None else None
    sizes = sizes_of(space, parent) if parent is not None else None
    both = [budget for text in (held or space.hold) for budget in parse_held(text, sizes)]
    tables = table if isinstance(table, SearchTables) else SearchTables({table.device: table})
    merged = tables.spread(combine(combine(space.budgets, budgets), both))
    trials = trials or settings.trials
    return Searcher(
        space,
        tables,
        evaluator,
        run_dir,
        budgets=merged,
        trials=trials,
        seed=seed,
        storage=storage,
        baseline=parent,
        halving=settings.halving,
    )


def keep_result(run_dir: Path, searcher: Searcher, result: SearchResult, *, chosen: Path | None = None) -> None:
    """Write search.json and, when a layout was found, its spec (to `chosen`; default: RUN/spec.toml) and front/."""
    from archsearch.search import write_results

    if result.best is not None:
        write_results(result, searcher, chosen=chosen)
    document = result.to_dict() | {
        "budgets": {budget.name: budget.limit for budget in searcher.budgets},
        "limits": [str(budget) for budget in searcher.budgets],
        "device": searcher.table.device,
        "devices": list(getattr(searcher.table, "devices", [searcher.table.device])),
        "shared": result.devices or {},
        "seed": searcher.seed,
    }
    write_atomic(run_dir / "search.json", json.dumps(document, indent=2) + "\n")


def infeasible(result: SearchResult) -> RunError:
    """The one line for budgets that no layout keeps."""
    from archsearch.search.unreachable import explained

    return RunError(explained(result.unreachable))


def run(
    space_path: Path,
    run_dir: Path,
    device_ids: Sequence[str],
    *,
    budgets: Sequence[Budget] = (),
    trials: int | None = None,
    seed: int | None = None,
    outcome: RunOutcome,
) -> Iterator[StageEvent]:
    """Run all stages; what is done already is not done again.

    Raises:
        ArchsearchError, OperatorError, DeviceError: a stage failed; the report of what there is has been written by then.
    """
    # Complaints first, before anything is written, and not an hour later.
    _check_sources(space_path)
    devices = {device_id: open_device(device_id) for device_id in device_ids}
    refuse_twins(devices)
    for device_id, device in devices.items():
        refuse(device_id, device.info.extra)
    space = claim(run_dir, space_path)
    first, whose = device_ids[0], len(devices) > 1
    yield StageEvent(stage="profile")
    for device_id, measured in profile_all(space, run_dir, devices):
        yield StageEvent(stage="profile", event=measured, device=device_id)
    for device_id, device in devices.items():
        keep_limits(run_dir, device_id, device, space.threads)
    yield StageEvent(stage="search")
    searcher = make_searcher(space, run_dir, load_tables(run_dir, device_ids), budgets, trials=trials, seed=seed)
    with searcher.evaluator:
        for found in searcher.run():
            yield StageEvent(stage="search", event=found)
    outcome.search = result = searcher.result()
    keep_result(run_dir, searcher, result)
    if result.best is None:
        yield from _report(run_dir, outcome)
        raise infeasible(result)
    outcome.spec = spec = ArchSpec.read(run_dir / "spec.toml")

    yield StageEvent(stage="check")
    for point in _to_check(result):
        named = replace(point.spec, name=f"layout {point.spec.spec_id[:6]}")
        target = spec_target(named, [space.precision], run_dir / "models", max_context=space.positions)
        for device_id, device in devices.items():
            yield from _bench("check", target, device, device_id, space, run_dir, load_table(run_dir, device_id), passes=1, whose=whose)

    yield StageEvent(stage="train")
    yield from _train(space, spec, run_dir)
    yield StageEvent(stage="export")
    yield from _export(space, run_dir)
    yield StageEvent(stage="bench")
    trained = onnx_target(run_dir / "export" / "model.onnx", spec=replace(spec, name="trained model"))
    for device_id, device in devices.items():
        yield from _bench("bench", trained, device, device_id, space, run_dir, load_table(run_dir, device_id), passes=2, whose=whose)
    outcome.bench = read_json(bench_file(run_dir, "trained model", first))
    yield from _report(run_dir, outcome)


def _to_check(result: SearchResult) -> list[Any]:
    """Layouts of the front from the fastest to the slowest, without the chosen one, which is benched when it is trained."""
    others = [point for point in result.front if result.best is not None and point.spec != result.best.spec]
    if len(others) <= CHECKED_LAYOUTS:
        return others
    return [others[i * (len(others) - 1) // (CHECKED_LAYOUTS - 1)] for i in range(CHECKED_LAYOUTS)]


def _bench(
    stage: Stage,
    target: Any,
    device: Device,
    device_id: str,
    space: Space,
    run_dir: Path,
    table: CostTable,
    *,
    passes: int,
    whose: bool,
) -> Iterator[StageEvent]:
    """`whose`: say which device is measured, where there are several."""
    result = BenchResult()
    workloads = space.workloads(space.precision, space.threads)
    for event in bench(target, device, workloads, run_dir=run_dir, table=table, device_id=device_id, passes=passes, result=result):
        named = replace(event, label=f"{device_id} {event.label}".rstrip()) if whose else event
        yield StageEvent(stage=stage, event=named)
    keep_bench(run_dir, device_id, result.document)


def _check_sources(space_path: Path) -> None:
    from archsearch.data.sources import parse_sources

    texts = Space.read(space_path).train.data
    for text, source in zip(texts, parse_sources(texts), strict=True):
        if not source.on_hub and not Path(source.location).exists():
            raise InputError(f"{space_path}: train.data: {text}: no such file or folder, seen from {Path.cwd()}")


def bench_file(run_dir: Path, name: str, device_id: str) -> Path:
    """Where a model's bench on a device is kept."""
    plain = re.sub(r"[^\w.,+@=-]", "_", f"{name}-{device_id}")  # serials have colons, and whatever their makers liked
    return run_dir / "bench" / f"{plain}.json"


def keep_bench(run_dir: Path, device_id: str, document: dict[str, Any]) -> None:
    """Keep a bench document for the report."""
    write_atomic(bench_file(run_dir, document["name"], device_id), json.dumps(document, indent=2) + "\n")


def train_settings(space: Space) -> Any:
    """The trainer's settings as a space's [train] table has them."""
    from archsearch.train import TrainSettings

    table = space.train
    if table.tokens is not None:
        return TrainSettings(tokens=table.tokens)
    return TrainSettings(max_seconds=60 * table.minutes) if table.minutes is not None else TrainSettings()


def _train(space: Space, spec: ArchSpec, run_dir: Path) -> Iterator[StageEvent]:
    from archsearch.checkpoint import Checkpoint, is_checkpoint
    from archsearch.train import read_metrics, train

    out = run_dir / "checkpoint"
    resume = False
    if is_checkpoint(out):
        kept = Checkpoint.open(out).spec
        if kept.spec_id != spec.spec_id:
            # The search has chosen anew: what was trained before is kept beside.
            out.rename(run_dir / f"checkpoint-{kept.spec_id}")
        else:
            metrics = read_metrics(out)
            if metrics and metrics[-1]["event"] == "finished":
                return
            resume = True
    for event in train(spec, space.train.data, out, settings=train_settings(space), resume=resume):
        yield StageEvent(stage="train", event=event)


def _export(space: Space, run_dir: Path) -> Iterator[StageEvent]:
    from archsearch.export.to_onnx import export_onnx

    checkpoint, out = run_dir / "checkpoint", run_dir / "export"
    done = out / "export.json"
    if done.exists() and done.stat().st_mtime > (checkpoint / "model.safetensors").stat().st_mtime:
        return
    shutil.rmtree(out, ignore_errors=True)
    report = export_onnx(checkpoint, out, space.precision, max_context=space.positions, held_out=held_out_tokens(space, checkpoint))
    yield StageEvent(stage="export", event=report)


def held_out_tokens(space: Space, checkpoint: Path, count: int = 2048) -> list[int]:
    """Tokens the checkpoint was not trained on, to tell what a precision costs."""
    from archsearch.checkpoint import Checkpoint
    from archsearch.data import open_corpus, prepare

    tokenizer = Checkpoint.open(checkpoint).tokenizer()
    data = prepare(open_corpus(space.train.data), space.vocab_size, tokenizer=tokenizer)
    return [int(token) for token in data.held_out[:count]]


def _report(run_dir: Path, outcome: RunOutcome) -> Iterator[StageEvent]:
    from archsearch.report import write_report

    yield StageEvent(stage="report")
    outcome.report = run_dir / "report.html"
    write_report(run_dir, outcome.report)
