"""Rows of the composition-error card."""

from __future__ import annotations

from typing import Any

from archsearch.calibration import FILE
from archsearch.errors import RunError
from archsearch.files import read_json
from archsearch.report.files import RunFiles
from reports.rows import CalibrationSummary, HeldOutRow


def card(run: RunFiles) -> dict[str, Any] | None:
    """The card of the report's device; None where it was not calibrated.

    Raises:
        RunError: the file is damaged.
    """
    path = run.run_dir / FILE
    if not path.exists():
        return None
    fingerprint = next(info["fingerprint"] for info in run.infos if info["device_id"] == run.device)
    cards = read_json(path)
    return cards.get(fingerprint) if isinstance(cards, dict) else None


def held_out(run: RunFiles) -> tuple[HeldOutRow, ...]:
    found = card(run)
    if found is None:
        return ()
    try:
        times = [
            HeldOutRow(
                layout=case["layout"],
                workload=case["workload"],
                setting=setting(case["precision"], case["threads"]),
                unit="ms",
                predicted=case["predicted_ms"] * case["drift"],
                measured=case["measured_ms"],
                error=case["error"],
                covered=case["covered"],
            )
            for case in found["cases"]
        ]
        return tuple(times)
    except (KeyError, TypeError) as error:
        raise _damaged(run, error) from error


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
        raise _damaged(run, error) from error


def setting(precision: str, threads: int) -> str:
    """ "int4, 2 threads"."""
    return f"{precision}, {threads} thread{'s' if threads > 1 else ''}"


def _damaged(run: RunFiles, error: Exception) -> RunError:
    return RunError(f"{run.run_dir / FILE}: not a calibration ({error!r}); remove it, and `archsearch calibrate` makes it anew")
