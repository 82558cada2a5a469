"""Rows of whole models: predicted and measured, their memory and parameters, the training, the export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from archsearch.budget import known_models, parameter_budget
from archsearch.errors import MissingMeasurement
from archsearch.files import read_json
from archsearch.memory import MB
from archsearch.report.files import RunFiles, trained_measurements
from archsearch.spec import ArchSpec
from reports.rows import HeldOutPoint, MemoryRow, ParameterRow, Parity, PredictedRow, TextSample, Training, TrainingStep


def predicted(run: RunFiles) -> Iterable[PredictedRow]:
    current = {run.chosen.spec_id} if run.chosen else set()
    for document in sorted(run.benches, key=lambda document: document["name"] != "trained model"):
        trained = document["name"] == "trained model"
        if trained and document["spec_id"] not in current:
            continue
        model = document["name"] + (f" on {document['device']}" if len(run.tables) > 1 else "")
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
                extrapolated=bool(row.get("extrapolated")),
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


def memory(run: RunFiles) -> Iterable[MemoryRow]:
    spec = run.chosen or any_layout(run)
    measured = trained_measurements(run) if run.chosen else {}
    for context in sorted(run.space.decode):
        try:
            parts = run.table.memory(spec, context)
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


def any_layout(run: RunFiles) -> ArchSpec:
    return run.space.spec([run.space.blocks[0]] * max(run.space.depths))


def parameters(run: RunFiles) -> Iterable[ParameterRow]:
    own = [parameter_budget(run.chosen, source=f"RUN/spec.toml, {run.chosen.spec_id}")] if run.chosen else []
    for budget in (*own, *known_models()):
        mine = bool(own) and budget is own[0]
        yield ParameterRow(
            model=f"{budget.name} (chosen)" if mine else budget.name,
            own=mine,
            parts=dict(budget.parts),
            embedding_share=budget.embedding_share,
            source=budget.source,
        )


def training(run: RunFiles) -> Training | None:
    out = run.run_dir / "checkpoint"
    if run.chosen is None or not (out / "metrics.jsonl").exists():
        return None
    from archsearch.train.metrics import read_metrics

    events = read_metrics(out)
    steps = [event for event in events if event["event"] == "step"]
    started = [event for event in events if event["event"] == "started"]
    finished = [event for event in events if event["event"] == "finished"]
    keep = max(1, len(steps) // 400)
    samples = read_json(out / "samples.json") if (out / "samples.json").exists() else []
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


def parity(run: RunFiles) -> Parity | None:
    path = run.run_dir / "export" / "export.json"
    if run.chosen is None or not path.exists():
        return None
    document = read_json(path)
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


def _listed(samples: Any) -> list[dict[str, Any]]:
    return samples if isinstance(samples, list) else list(samples.get("samples", []))
