"""Rows of what was measured, and under which conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from archsearch.budgets import parse_metric
from archsearch.cases import block_label, block_subject
from archsearch.emulated import is_emulated
from archsearch.estimate import row_summary
from archsearch.memory import MB
from archsearch.predict import CostTable
from archsearch.report.files import RunFiles
from archsearch.series import heat
from archsearch.store import Row
from archsearch.workload import Workload
from operators.costs import block_costs
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims
from reports.rows import DeviceRow, FailureRow, OperatorCost, RooflinePoint, Samples, SeriesRow

SAMPLES_A_CASE = 2000


def devices(run: RunFiles) -> Iterable[DeviceRow]:
    for info in run.infos:
        yield DeviceRow(
            device_id=info["device_id"],
            name=info["name"],
            cpu=info["cpu"],
            cores=info["cores"],
            memory_gb=info["memory_bytes"] / 2**30,
            system=info["system"],
            runtime=info["runtime"] or "",
            clusters=_clusters(info.get("extra", {}).get("clusters", ())),
        )


def _clusters(found: Sequence[Mapping[str, Any]]) -> str:
    """Kinds of cores in words, the fastest first; empty where there is one kind, or none is told."""
    told = [f"{len(cluster['cores'])} × {cluster['max_mhz'] / 1e3:.1f} GHz" for cluster in found if cluster["max_mhz"]]
    return " + ".join(told) if len(told) == len(found) > 1 else ""


def measured_blocks(run: RunFiles, table: CostTable) -> Iterable[tuple[BlockSpec, ModelDims, Workload, Row]]:
    rows = {(row.subject_id, row.workload): row for row in table.rows if row.purpose == "latency"}
    for dims in run.space.all_dims:
        for block in run.space.blocks:
            for workload in run.space.workloads():
                for copies in range(64, 0, -1):
                    row = rows.get((block_subject(block, dims, copies).subject_id, workload))
                    if row is not None:
                        yield block, dims, workload, row
                        break


def operators(run: RunFiles) -> Iterable[OperatorCost]:
    for device_id, table in run.tables.items():
        for block, dims, workload, row in measured_blocks(run, table):
            operator = operator_for(block.operator)
            estimate = table.block(block, dims, workload)
            yield OperatorCost(
                label=block_label(block),
                operator=operator.label(block.operator),
                family=operator.family,
                ffn=block.ffn.intermediate_size,
                hidden_size=dims.hidden_size,
                phase=workload.phase,
                tokens=workload.tokens,
                context=workload.context,
                batch=workload.batch,
                precision=workload.precision,
                threads=workload.threads,
                time_ms=estimate.value,
                low_ms=estimate.low,
                high_ms=estimate.high,
                rounds=len(row.rounds),
                runs=sum(len(samples) for samples in row.rounds.values()),
                state_mb=block_costs(block, dims).state_bytes(batch=workload.batch, cache=workload.cache) / MB,
                device=device_id,
            )


def samples(run: RunFiles) -> Iterable[Samples]:
    """Of every operator with the widest FFN, decoding at the longest context, and of the trained model."""
    metric = parse_metric(run.latency_metric)
    if metric.kind != "decode_ms":
        return
    widest = max(ffn.intermediate_size for ffn in run.space.ffns)
    for block, dims, workload, row in measured_blocks(run, run.table):
        if (workload.phase, workload.context) != ("decode", metric.at) or block.ffn.intermediate_size != widest:
            continue
        if (workload.precision, workload.threads, workload.batch) != run.table.primary or dims != run.space.all_dims[-1]:
            continue
        yield Samples(
            label=block_label(block), family=operator_for(block.operator).family, workload=workload.label, milliseconds=_samples(row)
        )


def roofline(run: RunFiles) -> Iterable[RooflinePoint]:
    """FLOP per byte from the specs, FLOP/s from the measured time."""
    for block, dims, workload, row in measured_blocks(run, run.table):
        if (workload.precision, workload.threads, workload.batch) != run.table.primary:
            continue
        if workload.phase == "decode" and workload.context != max(run.space.decode):
            continue
        costs = block_costs(block, dims)
        flops = costs.flops(tokens=workload.tokens, context=workload.context) * workload.batch
        read = costs.weight_bytes(workload.precision) + costs.state_bytes(batch=workload.batch, cache=workload.cache)
        seconds = row_summary(row).value / 1e3
        operator = operator_for(block.operator)
        yield RooflinePoint(
            label=block_label(block), family=operator.family, phase=workload.phase, intensity=flops / read, gflops=flops / seconds / 1e9
        )


def series(run: RunFiles) -> Iterable[SeriesRow]:
    """Processes that timed something, one row each; those that took memory are summed up in one."""
    names = {info["fingerprint"]: info["device_id"] for info in run.infos}
    for series_id, entry in run.store.conditions().items():
        own = [row for row in run.rows if series_id in row.series and row.rounds]
        if not own:
            continue
        conditions, state = entry["conditions"], entry["state"]
        states = [look for row in own for look in row.states]
        shares = [look["busy_other_share"] for look in states if look.get("busy_other_share") is not None]
        steals = [look["steal_ticks"] for look in states if look.get("steal_ticks") is not None]
        clocks = [clock for look in states for clock in (look.get("clock_mhz") or ())]
        temperatures = [look["temperature_c"] for look in states if look.get("temperature_c") is not None]
        busy = float(np.mean(shares)) if shares else None
        yield SeriesRow(
            started=datetime.fromtimestamp(state["time_unix_s"], UTC).isoformat(timespec="seconds"),
            device=names.get(entry["fingerprint"], entry["fingerprint"]),
            agent=conditions["agent"],
            runtime=conditions["runtime"],
            threads=conditions["threads"],
            cores=", ".join(map(str, conditions["cores"])) if conditions["cores"] is not None else "not pinned",
            clock_mhz=float(np.median(clocks)) if clocks else None,
            temperature_c=max(temperatures) if temperatures else None,
            load_1m=state.get("load_1m"),
            busy_other_share=busy,
            steal_ticks=max(steals) - min(steals) if steals else None,
            huge_pages=conditions["huge_pages"],
            governor=conditions["governor"],
            measurements=len(own),
            rounds=sum(len(row.rounds) for row in own),
            spread=_spread(own),
            flags=(*heat(entry), *_became_hot(entry, states), *(("others used the machine",) if busy is not None and busy > 0.1 else ())),
            **_phones_own(conditions, state),
        )


def _became_hot(entry: Mapping[str, Any], looks: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What a series that began cool came to while it was measured."""
    from devices.health import flags
    from devices.protocol import decode_state

    found = {"hot", "throttled"} & set(flags([decode_state(dict(look)) for look in looks])) - set(heat(entry))
    return tuple(f"{name} meanwhile" for name in sorted(found))


THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's words for its numbers."""


def _phones_own(conditions: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, str]:
    """What a phone told of itself when the series began, in words; nothing where it did not, or is none."""
    found = {}
    if state.get("on_battery") is not None:
        found["power"] = "battery" if state["on_battery"] else "plugged in"
        if state.get("battery_percent") is not None:
            found["power"] += f", {state['battery_percent']} %"
    if state.get("screen_on") is not None:
        found["screen"] = "on" if state["screen_on"] else "off"
    if "fixed_performance" in conditions.get("extra", {}):
        found["clocks"] = "held" if conditions["extra"]["fixed_performance"] else "not offered"
    status = state.get("thermal_status")
    if status is not None:
        found["thermal_status"] = THERMAL_STATUS[status] if 0 <= status < len(THERMAL_STATUS) else str(status)
    return found


def failures(run: RunFiles) -> Iterable[FailureRow]:
    names = {info["fingerprint"]: f"{info['device_id']}: " if len(run.infos) > 1 else "" for info in run.infos}
    for row in run.rows:
        if row.status == "failed":
            yield FailureRow(
                label=names[row.fingerprint] + (row.subject.get("label") or row.subject_id),
                workload=row.workload.label,
                reason=row.reason or "",
                detail=row.detail or "",
            )
    for lost in (run.search or {}).get("given_up", ()):
        yield FailureRow(
            label=lost["pattern"],
            workload=f"small trainings, trial {lost['trial']}",
            reason=lost["reason"],
            detail="given up; `archsearch search` with --retry trains it again",
        )


def advice(run: RunFiles) -> Sequence[str]:
    from devices.health import advice
    from devices.protocol import decode_conditions, decode_state

    found: list[str] = []
    series = run.store.conditions().values()
    emulated = [info["device_id"] for info in run.infos if is_emulated(info.get("extra", {}))]
    found += [f"{device_id} is emulated: its times say nothing about a phone." for device_id in emulated]
    for info in run.infos:  # each by its own looks: of two machines together, clocks "fall" and cores are "stolen"
        entry = next((entry for entry in series if entry["fingerprint"] == info["fingerprint"]), None)
        if entry is None:
            continue
        states = [decode_state(look) for row in run.rows if row.fingerprint == info["fingerprint"] for look in row.states]
        whose = f"{info['device_id']}: " if len(run.infos) > 1 else ""
        found += [f"{whose}{line}" for line in advice(decode_conditions(entry["conditions"]), states)]
    return tuple(found)


def versions(run: RunFiles) -> dict[str, str]:
    return {info["device_id"]: info["runtime"] or "" for info in run.infos}


def _samples(row: Row) -> tuple[float, ...]:
    values = np.sort(np.concatenate(list(row.rounds.values()))) / row.copies / 1e6
    if len(values) > SAMPLES_A_CASE:
        values = values[np.linspace(0, len(values) - 1, SAMPLES_A_CASE).astype(int)]
    return tuple(float(value) for value in values)


def _spread(rows: Sequence[Row]) -> float | None:
    from devices.health import spread

    found = [spread([int(ns) for samples in row.rounds.values() for ns in samples]) for row in rows]
    return float(np.median(found)) if found else None
