"""Rows of the composition-error card."""

from __future__ import annotations

from typing import Any

from archsearch.calibration import damaged, read_card
from archsearch.report.files import RunFiles
from reports.rows import CalibrationSummary, HeldOutRow


def card(run: RunFiles) -> dict[str, Any] | None:
    """The card of the report's device; None where it was not calibrated with the runtime that its table was measured with.

    Raises:
        RunError: the file is damaged.
    """
    fingerprint = next(info["fingerprint"] for info in run.infos if info["device_id"] == run.device)
    return read_card(run.run_dir, fingerprint, run.table.runtime)


def advice(run: RunFiles) -> tuple[str, ...]:
    """What to do where predictions were never tested."""
    if not run.tables or card(run) is not None:
        return ()
    return (f"Predictions are not calibrated: `archsearch calibrate --run RUN --device {run.device}` says how far they can be trusted.",)


def held_out(run: RunFiles) -> tuple[HeldOutRow, ...]:
    found = card(run)
    if found is None:
        return ()
    try:
        return tuple(
            HeldOutRow(
                layout=case["layout"],
                workload=case["workload"],
                setting=setting(case["precision"], case["threads"]),
                unit="ms",
                predicted=case["predicted_ms"] * case["drift"],
                measured=case["measured_ms"],
                error=case["error"],
                low=case["predicted_low_ms"] * case["drift"],
                high=case["predicted_high_ms"] * case["drift"],
                covered=case["covered"],
            )
            for case in found["cases"]
        )
    except (KeyError, TypeError) as error:
        raise damaged(run.run_dir) from error


def summaries(run: RunFiles) -> tuple[CalibrationSummary, ...]:
    """Latency by workload, then memory by phase."""
    found = card(run)
    if found is None:
        return ()
    try:
        times = [
            CalibrationSummary(
                workload=line["workload"],
                setting=setting(line["precision"], line["threads"]),
                interpolated=line["interpolated"],
                drift=(line["drift_low"], line["drift_high"]),
                **{
                    name: line[name]
                    for name in ("layouts", "median", "p95", "worst", "bias", "rank_correlation", "coverage", "coverage_widened")
                },
            )
            for line in found["summary"]
        ]
        peaks = [
            CalibrationSummary(
                workload=f"memory, {line['phase']}",
                setting=line["precision"],
                **{name: line[name] for name in ("layouts", "median", "worst", "bias")},
            )
            for line in found["memory_summary"]
        ]
        return (*times, *peaks)
    except (KeyError, TypeError) as error:
        raise damaged(run.run_dir) from error


def setting(precision: str, threads: int) -> str:
    """ "int4, 2 threads"."""
    return f"{precision}, {threads} thread{'s' if threads > 1 else ''}"
