"""A run's report: rows filled from whatever stages have been run, and nothing that was not."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path

from archsearch.errors import InputError
from archsearch.report import calibrated, confirmed, fair, measured, planned, searched, trained, validated
from archsearch.report.files import RunFiles
from archsearch.search.result import TEXT_TIE
from reports.rows import Report

CHOICE = (
    "Among the trained layouts within the budgets: those that solve recall first, of these the fewest bits per byte of text, "
    f"and among equals (within {TEXT_TIE:.1%}) the fastest. Quality is that of 64-channel copies, trained for "
    "seconds: not validated at full width."
)


def write_report(run_dir: Path, out: Path) -> None:
    """Write the report of a run.

    Raises:
        InputError: the directory holds no run.
        StoreError: its database cannot be read.
        RunError: the page cannot be written.
    """
    from archsearch.files import write_atomic
    from reports.page import render

    write_atomic(out, render(collect(run_dir)))


def collect(run_dir: Path) -> Report:
    """All rows of a run's report.

    Raises:
        InputError: the directory holds no run.
    """
    if not (run_dir / "space.toml").exists():
        raise InputError(f"{run_dir}: holds no run; `archsearch profile SPACE --run {run_dir}` starts one")
    return report(RunFiles(run_dir))


def report(run: RunFiles) -> Report:
    """All sections."""
    from archsearch import __version__

    space = run.space
    setting = f"{space.precision}, {space.threads} thread{'s' if space.threads > 1 else ''}"
    limits = " · ".join(f"{name} ≤ {limit:g}" for name, limit in (run.search["budgets"] if run.search else {}).items())
    device = next(info for info in run.infos if info["device_id"] == run.device)
    subtitle = f"{device['cpu']} · {setting} · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC" + (f" · {limits}" if limits else "")
    return Report(
        title=f"Hybrid layout search · {space.name} on {' and '.join(run.searched_for)}",
        subtitle=subtitle,
        cards=searched.cards(run),
        devices=tuple(measured.devices(run)),
        operators=tuple(measured.operators(run)),
        equal=tuple(fair.equal_costs(run)),
        samples=tuple(measured.samples(run)),
        roofline=tuple(measured.roofline(run)),
        roof_gbps=_billions(run.limit("read_bandwidth")),
        roof_gflops=_billions(run.limit("fp32_matmul")),
        latency_metric=run.latency_metric,
        memory_metric=run.memory_metric,
        designs=searched.designs(run),
        budgets=tuple(searched.budgets(run)),
        chosen_pattern=run.chosen.pattern if run.chosen else "",
        choice_rule=CHOICE if run.chosen else "",
        shared=searched.shared(run) if run.chosen else (),
        confirmed=confirmed.confirmed(run),
        predicted=tuple(trained.predicted(run)),
        held_out=calibrated.held_out(run),
        calibration=calibrated.summaries(run),
        quality_checks=validated.checks(run),
        quality_note=validated.note(run),
        memory=tuple(trained.memory(run)),
        memory_budget_mb=next((budget.limit for budget in searched.budgets(run) if budget.metric.startswith("memory_mb")), None),
        parameters=tuple(trained.parameters(run)),
        plan=planned.plan(run),
        training=trained.training(run),
        parity=trained.parity(run),
        series=tuple(measured.series(run)),
        failures=tuple(measured.failures(run)),
        advice=(*measured.advice(run), *calibrated.advice(run), *validated.advice(run)),
        commands=commands(run),
        versions={"archsearch": __version__, **measured.versions(run)},
    )


def commands(run: RunFiles) -> tuple[str, ...]:
    """How to come by the numbers again."""
    devices = "".join(f" --device {shlex.quote(device)}" for device in (run.searched_for if run.search else run.tables))
    budgets = "".join(f" --budget '{name}<={limit:g}'" for name, limit in (run.search["budgets"] if run.search else {}).items())
    return (f"archsearch {'profile' if run.search is None else 'run'} space.toml --run RUN{devices}{budgets}",)


def _billions(value: float | None) -> float | None:
    return None if value is None else value / 1e9
