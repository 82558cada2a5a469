"""Rows of what `archsearch plan --run` kept: how long to train, by scaling laws."""

from __future__ import annotations

from typing import Any

from archsearch.errors import RunError
from archsearch.files import read_json
from archsearch.overtraining.quantities import format_hours
from archsearch.report.files import RunFiles
from reports.plan_rows import Plan, PlanCurve, PlanLaw


def plan(run: RunFiles) -> Plan | None:
    """The plan that was kept last; None without one.

    Raises:
        RunError: the file is damaged.
    """
    path = run.run_dir / "plan.json"
    if not path.exists():
        return None
    found = read_json(path)
    try:
        return Plan(
            spec=found["name"],
            spec_id=found["spec_id"],
            chosen=None if run.chosen is None else run.chosen.spec_id == found["spec_id"],
            parameters=found["laws"][0]["parameters"],
            tokens=found["tokens"],
            inference_tokens=found["inference_tokens"],
            hours=_hours(found),
            laws=tuple(_law(entry) for entry in found["laws"]),
            notes=tuple(found["notes"]),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise RunError(f"{path}: not a plan; remove it, and `archsearch plan SPEC ... --run {run.run_dir}` makes it anew") from error


def _law(entry: dict[str, Any]) -> PlanLaw:
    constants, optimal = entry["constants"], entry["optimal_tokens"]["value"]
    size_term = constants["A"] / entry["parameters"] ** constants["alpha"]
    lifetime = entry["lifetime"]
    curve: dict[str, Any] = {name: None if value is None else tuple(value) for name, value in entry["curve"].items()}
    return PlanLaw(
        name=entry["law"],
        source=entry["source"],
        tokens=entry["tokens"],
        loss=entry["loss"]["value"],
        loss_low=entry["loss"]["low"],
        loss_high=entry["loss"]["high"],
        total_flops=entry["total_flops"],
        optimal_tokens=optimal,
        optimal_loss=constants["E"] + size_term + constants["B"] / optimal ** constants["beta"],
        excess=entry["excess_loss"]["value"],
        same_loss=(entry["same_loss"]["parameters"], entry["same_loss"]["tokens"]),
        compute_ratio=entry["compute_ratio"]["value"],
        break_even=entry["break_even_inference_tokens"]["value"],
        right_for=entry["right_for_inference_tokens"]["value"],
        lifetime=None if lifetime is None else (lifetime["parameters"], lifetime["tokens"], lifetime["total_flops"]),
        beyond_fit=tuple(entry["beyond_fit"]),
        curve=PlanCurve(**curve),
    )


def _hours(found: dict[str, Any]) -> str:
    if found["tokens"] is None:
        return ""
    training = found["training"]
    return f"{format_hours(found['laws'][0]['gpu_hours'])} {training['accelerator']} hours at {100 * training['mfu']:.0f} % MFU"
