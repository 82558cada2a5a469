"""Fills a report's rows from a run directory: whatever stages have been run, and nothing that was not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.budget import known_models, parameter_budget
from archsearch.budgets import parse_metric
from archsearch.cases import block_label, block_subject
from archsearch.errors import InputError, MissingMeasurement
from archsearch.predict import MB, CostTable, round_medians
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.store import Row, Store
from archsearch.workload import Workload
from operators.costs import block_costs, model_parameters
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims
from reports.rows import (
    BudgetRow,
    Card,
    Cell,
    DesignRow,
    DeviceRow,
    FailureRow,
    HeldOutPoint,
    MemoryRow,
    OperatorCost,
    ParameterRow,
    Parity,
    PredictedRow,
    Report,
    RooflinePoint,
    Samples,
    SeriesRow,
    TextSample,
    Training,
    TrainingStep,
)

SAMPLES_A_CASE = 2000
UNTRAINED_SHOWN = 400
CHOICE = (
    "Among the trained layouts within the budgets: those that solve recall first, of these the fewest bits per byte of text, "
    "and among equals (within 0.5 %) the fastest."
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
    return _Collector(run_dir).report()


@dataclass
class _Collector:
    run_dir: Path

    @cached_property
    def space(self) -> Space:
        return Space.read(self.run_dir / "space.toml")

    @cached_property
    def store(self) -> Store:
        return Store(self.run_dir / "measurements.db", create=False)

    @cached_property
    def infos(self) -> list[dict[str, Any]]:
        return self.store.devices()

    @cached_property
    def rows(self) -> list[Row]:
        return self.store.rows()

    @cached_property
    def tables(self) -> dict[str, CostTable]:
        return {info["device_id"]: CostTable.load(self.store, device=info["fingerprint"]) for info in self.infos}

    @cached_property
    def search(self) -> dict[str, Any] | None:
        path = self.run_dir / "search.json"
        return json.loads(path.read_text()) if path.exists() else None

    @cached_property
    def device(self) -> str:
        """The device that the search was for; else the first."""
        wanted = self.search["device"] if self.search else None
        return wanted if wanted in self.tables else next(iter(self.tables))

    @property
    def table(self) -> CostTable:
        return self.tables[self.device]

    @cached_property
    def chosen(self) -> ArchSpec | None:
        path = self.run_dir / "spec.toml"
        return ArchSpec.read(path) if path.exists() and self.search and self.search["best"] else None

    @cached_property
    def benches(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.run_dir / "bench").glob("*.json"))]

    @cached_property
    def latency_metric(self) -> str:
        for name in self.search["budgets"] if self.search else ():
            if name.startswith("decode_ms"):
                return str(name)
        decode = sorted(self.space.decode)
        return f"decode_ms@{decode[-1]}" if decode else f"prefill_ms@{self.space.prefill[-1]}"

    @cached_property
    def memory_metric(self) -> str:
        for name in self.search["budgets"] if self.search else ():
            if name.startswith("memory_mb"):
                return str(name)
        return f"memory_mb@{max(self.space.decode)}" if self.space.decode else "parameters"

    def report(self) -> Report:
        from archsearch import __version__

        space = self.space
        designs = self.designs()
        setting = f"{space.precision}, {space.threads} thread{'s' if space.threads > 1 else ''}"
        budgets = " · ".join(f"{name} ≤ {limit:g}" for name, limit in (self.search["budgets"] if self.search else {}).items())
        device = next(info for info in self.infos if info["device_id"] == self.device)
        subtitle = f"{device['cpu']} · {setting} · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC" + (f" · {budgets}" if budgets else "")
        return Report(
            title=f"Hybrid layout search · {space.name} on {self.device}",
            subtitle=subtitle,
            cards=self.cards(),
            devices=tuple(self.devices()),
            operators=tuple(self.operators()),
            samples=tuple(self.samples()),
            roofline=tuple(self.roofline()),
            latency_metric=self.latency_metric,
            memory_metric=self.memory_metric,
            designs=designs,
            budgets=tuple(self.budgets()),
            chosen_pattern=self.chosen.pattern if self.chosen else "",
            choice_rule=CHOICE + " Quality is that of 64-channel copies, trained for seconds: not yet validated at full width."
            if self.chosen
            else "",
            predicted=tuple(self.predicted()),
            memory=tuple(self.memory()),
            memory_budget_mb=next((budget.limit for budget in self.budgets() if budget.metric.startswith("memory_mb")), None),
            parameters=tuple(self.parameters()),
            training=self.training(),
            parity=self.parity(),
            series=tuple(self.series()),
            failures=tuple(self.failures()),
            advice=tuple(self.advice()),
            commands=self.commands(),
            versions={"archsearch": __version__, **self.versions()},
        )

    # -- profile ---------------------------------------------------------------------------------------------------------

    def devices(self) -> Iterable[DeviceRow]:
        for info in self.infos:
            yield DeviceRow(
                device_id=info["device_id"],
                name=info["name"],
                cpu=info["cpu"],
                cores=info["cores"],
                memory_gb=info["memory_bytes"] / 2**30,
                system=info["system"],
                runtime=info["runtime"] or "",
            )

    def _measured_blocks(self, table: CostTable) -> Iterable[tuple[BlockSpec, ModelDims, Workload, Row]]:
        rows = {(row.subject_id, row.workload): row for row in table.rows if row.purpose == "latency"}
        for dims in self.space.all_dims:
            for block in self.space.blocks:
                for workload in self.space.workloads():
                    for copies in range(64, 0, -1):
                        row = rows.get((block_subject(block, dims, copies).subject_id, workload))
                        if row is not None:
                            yield block, dims, workload, row
                            break

    def operators(self) -> Iterable[OperatorCost]:
        for device_id, table in self.tables.items():
            for block, dims, workload, row in self._measured_blocks(table):
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
                    median_ms=estimate.value,
                    low_ms=estimate.low,
                    high_ms=estimate.high,
                    rounds=len(row.rounds),
                    runs=sum(len(samples) for samples in row.rounds.values()),
                    state_mb=block_costs(block, dims).state_bytes(batch=workload.batch, cache=workload.cache) / MB,
                    device=device_id,
                )

    def samples(self) -> Iterable[Samples]:
        """Of every operator with the widest FFN, decoding at the longest context, and of the trained model."""
        metric = parse_metric(self.latency_metric)
        if metric.kind != "decode_ms":
            return
        widest = max(ffn.intermediate_size for ffn in self.space.ffns)
        for block, dims, workload, row in self._measured_blocks(self.table):
            if (workload.phase, workload.context) != ("decode", metric.at) or block.ffn.intermediate_size != widest:
                continue
            if (workload.precision, workload.threads, workload.batch) != self.table.primary or dims != self.space.all_dims[-1]:
                continue
            yield Samples(
                label=block_label(block), family=operator_for(block.operator).family, workload=workload.label, milliseconds=_samples(row)
            )

    def roofline(self) -> Iterable[RooflinePoint]:
        """FLOP per byte from the specs, FLOP/s from the measured time."""
        for block, dims, workload, row in self._measured_blocks(self.table):
            if (workload.precision, workload.threads, workload.batch) != self.table.primary:
                continue
            if workload.phase == "decode" and workload.context != max(self.space.decode):
                continue
            costs = block_costs(block, dims)
            flops = costs.flops(tokens=workload.tokens, context=workload.context) * workload.batch
            read = costs.weight_bytes(workload.precision) + costs.state_bytes(batch=workload.batch, cache=workload.cache)
            seconds = float(np.median(round_medians(row))) / 1e9
            operator = operator_for(block.operator)
            yield RooflinePoint(
                label=block_label(block), family=operator.family, phase=workload.phase, intensity=flops / read, gflops=flops / seconds / 1e9
            )

    # -- search ----------------------------------------------------------------------------------------------------------

    def cells(self, spec: ArchSpec) -> tuple[Cell, ...]:
        return tuple(
            Cell(
                label=operator_for(block.operator).label(block.operator),
                family=operator_for(block.operator).family,
                ffn=block.ffn.intermediate_size,
            )
            for block in spec.layers
        )

    def designs(self) -> tuple[DesignRow, ...]:
        """Every trained layout, those refused for their costs, and a sample of what the cheap pass looked at."""
        if self.search is None:
            return ()
        from archsearch.budgets import Budget
        from archsearch.run import make_searcher
        from archsearch.search.feasible import Costs

        budgets = [Budget(parse_metric(name), limit) for name, limit in self.search["budgets"].items()]
        searcher = make_searcher(self.space, self.run_dir, self.table, budgets, trials=None, seed=self.search["seed"])
        searcher.budgets = tuple(budgets)
        front = {point["spec_id"] for point in self.search["front"]}
        chosen = self.search["best"]["spec_id"] if self.search["best"] else None

        def row(spec: ArchSpec, costs: Costs, label: str) -> DesignRow:
            quality = searcher.evaluator.cached(spec)
            return DesignRow(
                spec_id=spec.spec_id,
                pattern=spec.pattern,
                cells=self.cells(spec),
                hidden_size=spec.hidden_size,
                parameters=model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings),
                latency_ms=costs.values[self.latency_metric],
                memory_mb=costs.values.get(self.memory_metric, 0.0) if self.memory_metric != "parameters" else 0.0,
                feasible=costs.feasible,
                why=costs.reason(searcher.budgets) or "",
                label=label,
                trained=quality is not None,
                recall_accuracy=quality.recall.value if quality else None,
                recall_solved=quality.solves_recall if quality else None,
                text_bits_per_byte=quality.text.value if quality else None,
                on_front=spec.spec_id in front,
                chosen=spec.spec_id == chosen,
            )

        rows = [row(entry.spec, entry.costs, entry.label) for entry in searcher.inner()]
        known = {design.spec_id for design in rows}
        for point in self.search["front"]:
            spec = ArchSpec.from_dict(point["spec"])
            if spec.spec_id not in known:
                rows.append(row(spec, searcher.costs(spec), ""))
        trained = [design for design in rows if design.trained or design.label]
        rest = [design for design in rows if not design.trained and not design.label]
        step = max(1, len(rest) // UNTRAINED_SHOWN)
        return (*trained, *rest[::step])

    def budgets(self) -> Iterable[BudgetRow]:
        if self.search is None:
            return
        best = self.search["best"]
        measured = self._trained_measurements()
        for name, limit in self.search["budgets"].items():
            unit = {"decode_ms": "ms", "prefill_ms": "ms", "memory_mb": "MB"}.get(name.partition("@")[0], "")
            reachable = self.search["unreachable"].get(name, {}).get("best_reachable")
            yield BudgetRow(
                metric=name,
                unit=unit,
                limit=limit,
                predicted=best["costs"].get(name) if best else None,
                measured=measured.get(name),
                best_reachable=reachable,
            )

    def _trained_measurements(self) -> dict[str, float]:
        """What the trained model was measured at, by metric, on the search's device."""
        found: dict[str, float] = {}
        for document in self.benches:
            if document["name"] != "trained model" or document["device"] != self.device or self.chosen is None:
                continue
            if document["spec_id"] != self.chosen.spec_id:
                continue
            for row in document["workloads"]:
                name = f"decode_ms@{row['context']}" if row["phase"] == "decode" else f"prefill_ms@{row['tokens']}"
                if row["measured_ms"] is not None:
                    found[name] = row["measured_ms"]
            found |= {f"memory_mb@{row['context']}": row["measured_mb"] for row in document["memory"] if row["measured_mb"] is not None}
        return found

    def cards(self) -> tuple[Card, ...]:
        best = self.search["best"] if self.search else None
        if best is None or self.chosen is None:
            return ()
        cards = []
        measured = self._trained_measurements()
        for budget in self.budgets():
            value = budget.measured if budget.measured is not None else budget.predicted
            if value is None:
                continue
            shown = f"{value / 1e6:.2f} M" if budget.metric == "parameters" else f"{value:.3g} {budget.unit}"
            limit = f"{budget.limit / 1e6:g} M" if budget.metric == "parameters" else f"{budget.limit:g} {budget.unit}"
            source = (
                "counted"
                if budget.metric == "parameters"
                else f"measured, predicted {budget.predicted:.3g}"
                if budget.metric in measured
                else "predicted"
            )
            cards.append(
                Card(
                    title=budget.metric.replace("_ms", "").replace("_mb", "").replace("@", " @ "),
                    value=shown,
                    note=f"{source}; budget {limit}",
                    share=value / budget.limit,
                )
            )
        training = self.training()
        if training is not None and training.held_out:
            cards.append(
                Card(
                    title="Held-out text",
                    value=f"{training.held_out[-1].bits_per_byte:.2f} bits/byte",
                    note=training.facts.get("tokens", "") + " tokens trained",
                )
            )
        quality = best["quality"]
        recall = "solved" if quality["recall_status"] == "resolved" else f"{quality['recall_accuracy']:.0%}, unresolved"
        cards.append(Card(title="Recall (64-channel copy)", value=recall, note=f"{quality['recall_steps']} steps"))
        cards.append(Card(title="Shape", value=f"{len(self.chosen.layers)} × {self.chosen.hidden_size}", note=self.chosen.pattern))
        return tuple(cards)

    # -- prediction against measurement ----------------------------------------------------------------------------------

    def predicted(self) -> Iterable[PredictedRow]:
        current = {self.chosen.spec_id} if self.chosen else set()
        for document in sorted(self.benches, key=lambda document: document["name"] != "trained model"):
            trained = document["name"] == "trained model"
            if trained and document["spec_id"] not in current:
                continue
            model = document["name"] + (f" on {document['device']}" if len(self.tables) > 1 else "")
            for row in document["workloads"]:
                workload = f"decode@{row['context']}" if row["phase"] == "decode" else f"prefill@{row['tokens']}"
                yield PredictedRow(
                    model=model,
                    trained=trained,
                    workload=workload,
                    unit="ms",
                    predicted=row["predicted_ms"],
                    low=row["low_ms"],
                    high=row["high_ms"],
                    measured=row["measured_ms"],
                    p95=row["measured_p95_ms"],
                    drift=row.get("drift"),
                )
            for row in document["memory"]:
                yield PredictedRow(
                    model=model,
                    trained=trained,
                    workload=f"memory@{row['context']}",
                    unit="MB",
                    predicted=row["predicted_mb"],
                    low=None,
                    high=None,
                    measured=row["measured_mb"],
                )

    def memory(self) -> Iterable[MemoryRow]:
        spec = self.chosen or self._any_layout()
        measured = self._trained_measurements() if self.chosen else {}
        for context in sorted(self.space.decode):
            try:
                parts = self.table.memory(spec, context)
            except MissingMeasurement:
                continue
            yield MemoryRow(
                context=context,
                parts_mb={
                    "weights": parts.weights / MB,
                    "embedding and head": parts.embedding_head / MB,
                    "caches": parts.caches / MB,
                    "session and activations": parts.runtime / MB,
                    "process": parts.process / MB,
                },
                measured_mb=measured.get(f"memory_mb@{context}"),
            )

    def _any_layout(self) -> ArchSpec:
        return self.space.spec([self.space.blocks[0]] * max(self.space.depths))

    def parameters(self) -> Iterable[ParameterRow]:
        own = [parameter_budget(self.chosen, source=f"RUN/spec.toml, {self.chosen.spec_id}")] if self.chosen else []
        for budget in (*own, *known_models()):
            mine = bool(own) and budget is own[0]
            yield ParameterRow(
                model=f"{budget.name} (chosen)" if mine else budget.name,
                own=mine,
                parts=dict(budget.parts),
                embedding_share=budget.embedding_share,
                source=budget.source,
            )

    # -- training --------------------------------------------------------------------------------------------------------

    def training(self) -> Training | None:
        out = self.run_dir / "checkpoint"
        if self.chosen is None or not (out / "metrics.jsonl").exists():
            return None
        from archsearch.train.metrics import read_metrics

        events = read_metrics(out)
        steps = [event for event in events if event["event"] == "step"]
        started = [event for event in events if event["event"] == "started"]
        finished = [event for event in events if event["event"] == "finished"]
        keep = max(1, len(steps) // 400)
        samples = json.loads((out / "samples.json").read_text()) if (out / "samples.json").exists() else []
        facts = {}
        if started:
            plan = started[-1]["plan"]
            facts["data"] = ", ".join(plan["sources"]) or "Python standard library sources"
            facts["batch"] = f"{plan['batch']} x {plan['sequence']}"
            facts["peak learning rate"] = f"{plan['learning_rate']:g}"
            facts["precision"] = plan["dtype"]
        if steps:
            facts["tokens"] = f"{steps[-1]['tokens'] / 1e6:.2f}M"
            facts["speed"] = f"{float(np.median([event['tokens_per_s'] for event in steps])):,.0f} tokens/s"
        if finished:
            facts["time"] = f"{finished[-1]['seconds'] / 60:.1f} min"
        return Training(
            steps=tuple(TrainingStep(step=e["step"], tokens=e["tokens"], loss_nats=e["loss"]) for e in steps[::keep]),
            held_out=tuple(
                HeldOutPoint(step=e["step"], tokens=e["tokens"], bits_per_byte=e["held_out"]["bits_per_byte"])
                for e in events
                if e["event"] == "evaluated"
            ),
            samples=tuple(
                TextSample(prompt=s["prompt"], text=s["text"], temperature=s["temperature"], reference=s.get("reference"))
                for s in _listed(samples)
            ),
            facts=facts,
        )

    def parity(self) -> Parity | None:
        path = self.run_dir / "export" / "export.json"
        if self.chosen is None or not path.exists():
            return None
        document = json.loads(path.read_text())
        parity = document.get("parity", document)
        facts = {"same next token as torch": f"{parity['greedy_agreement']:.1%}"}
        quality = parity.get("quality") or {}
        if quality.get("kl_nats") is not None:
            facts["KL to fp32"] = f"{quality['kl_nats']:.2g} nats"
        if quality.get("top1_agreement") is not None:
            facts["top-1 agreement with fp32"] = f"{quality['top1_agreement']:.1%}"
        if quality.get("bits_per_byte") is not None:
            facts["held-out bits per byte"] = f"{quality['bits_per_byte']:.3f} (fp32 {quality['bits_per_byte_fp32']:.3f})"
        return Parity(precision=parity["precision"], relative_error=parity["relative_error"], tolerance=parity["tolerance"], facts=facts)

    # -- conditions ------------------------------------------------------------------------------------------------------

    def series(self) -> Iterable[SeriesRow]:
        """Processes that timed something, one row each; those that took memory are summed up in one."""
        names = {info["fingerprint"]: info["device_id"] for info in self.infos}
        for series_id, entry in self.store.conditions().items():
            own = [row for row in self.rows if series_id in row.series and row.rounds]
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
                flags=("others used the machine",) if busy is not None and busy > 0.1 else (),
            )

    def failures(self) -> Iterable[FailureRow]:
        for row in self.rows:
            if row.status == "failed":
                yield FailureRow(
                    label=row.subject.get("label") or row.subject_id,
                    workload=row.workload.label,
                    reason=row.reason or "",
                    detail=row.detail or "",
                )

    def advice(self) -> Sequence[str]:
        from devices.health import advice
        from devices.protocol import decode_conditions, decode_state

        found: dict[str, None] = {}
        for entry in self.store.conditions().values():
            states = [decode_state(look) for row in self.rows for look in row.states]
            found |= dict.fromkeys(advice(decode_conditions(entry["conditions"]), states))
            break
        return tuple(found)

    def versions(self) -> dict[str, str]:
        return {info["device_id"]: info["runtime"] or "" for info in self.infos}

    def commands(self) -> tuple[str, ...]:
        budgets = "".join(f" --budget '{name}<={limit:g}'" for name, limit in (self.search["budgets"] if self.search else {}).items())
        if self.search is None:
            return (f"archsearch profile space.toml --run RUN --device {self.device}",)
        return (f"archsearch run space.toml --run RUN --device {self.device}{budgets}",)


def _listed(samples: Any) -> list[dict[str, Any]]:
    return samples if isinstance(samples, list) else list(samples.get("samples", []))


def _samples(row: Row) -> tuple[float, ...]:
    values = np.sort(np.concatenate(list(row.rounds.values()))) / row.copies / 1e6
    if len(values) > SAMPLES_A_CASE:
        values = values[np.linspace(0, len(values) - 1, SAMPLES_A_CASE).astype(int)]
    return tuple(float(value) for value in values)


def _spread(rows: Sequence[Row]) -> float | None:
    from devices.health import spread

    found = [spread([int(ns) for samples in row.rounds.values() for ns in samples]) for row in rows]
    return float(np.median(found)) if found else None
