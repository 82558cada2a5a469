"""A report of made-up numbers in which every section is filled, as a run on a laptop might leave it. For tests and for looking at the page.

python -m tests.reports.sample FILE.html
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

from reports.page import render
from reports.plan_rows import Plan, PlanCurve, PlanLaw
from reports.rows import (
    BudgetRow,
    CalibrationSummary,
    Card,
    Cell,
    DesignRow,
    DeviceRow,
    EqualCost,
    FailureRow,
    HeldOutPoint,
    HeldOutRow,
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
from tests.reports.sample_confirmed import sample_confirmed

OPERATORS = {
    "conv3": ("conv", 0.30, 0.0),
    "conv7": ("conv", 0.31, 0.0),
    "gla4": ("gla", 0.36, 0.0),
    "swa256": ("swa", 0.40, 0.0),
    "swa1024": ("swa", 0.52, 0.0),
    "gqa4": ("gqa", 0.38, 0.00007),
    "gqa8": ("gqa", 0.41, 0.00013),
    "rwkv": ("rwkv", 0.44, 0.0),
}
"""Label: family, milliseconds of a decode step, milliseconds per token of context. Invented."""
CONTEXTS = (512, 1024, 4096, 16384)
FFNS = (2560, 4608)
LAYERS = 16
LIMITS = {"decode_ms@4096": 7.0, "prefill_ms@512": 900.0, "memory_mb@4096": 360.0}


TIMES = {"median": 0.02, "p95": 0.07, "worst": 0.08, "bias": -0.01, "rank_correlation": 0.97, "coverage": 0.5, "coverage_widened": 0.9}


def sample_report(seed: int = 0) -> Report:
    """Every section filled."""
    random_ = random.Random(seed)
    designs = _designs(random_)
    chosen = next(design for design in designs if design.chosen)
    return Report(
        title="Made-up data for tests: hybrid layout search",
        subtitle="an invented CPU · int4, 2 threads · 2026-01-01 00:00 UTC",
        cards=(
            Card(title="decode @ 4096", value="5.87 ms", note="measured, predicted 5.71; budget 7 ms", share=5.87 / 7),
            Card(title="prefill @ 512", value="962 ms", note="measured, predicted 871; budget 900 ms", share=962 / 900),
            Card(title="memory @ 4096", value="341 MB", note="measured, predicted 338; budget 360 MB", share=341 / 360),
            Card(title="Held-out text", value="1.84 bits/byte", note="12.6M tokens trained"),
            Card(title="Recall (64-channel copy)", value="solved", note="420 steps"),
            Card(title="Shape", value=f"{LAYERS} × 1024", note=chosen.pattern),
        ),
        devices=(
            DeviceRow(
                device_id="local",
                name="made-up laptop",
                cpu="Invented 8-core",
                cores=8,
                memory_gb=31.1,
                system="Linux 6.1",
                runtime="onnxruntime 1.32.0",
            ),
        ),
        operators=tuple(_operators(random_)),
        equal=tuple(_equal()),
        samples=tuple(_samples(random_)),
        roofline=tuple(_roofline()),
        roof_gbps=60.0,
        roof_gflops=400.0,
        latency_metric="decode_ms@4096",
        memory_metric="memory_mb@4096",
        designs=designs,
        budgets=tuple(_budgets(chosen)),
        chosen_pattern=chosen.pattern,
        choice_rule="Among the trained layouts within the budgets: those that solve recall, and of these the fewest bits per byte.",
        confirmed=sample_confirmed(random.Random(seed)),
        predicted=tuple(_predicted(random_)),
        held_out=tuple(_held_out()),
        calibration=(
            CalibrationSummary(workload="decode@4096", setting="int4, 1 thread", layouts=6, **TIMES, drift=(0.98, 1.02)),
            CalibrationSummary(workload="memory, decode", setting="int4", layouts=4, median=0.02, worst=0.11, bias=0.01),
        ),
        memory=tuple(_memory()),
        memory_budget_mb=360.0,
        parameters=_parameters(),
        plan=_plan(),
        training=_training(random_),
        parity=Parity(
            precision="int4",
            relative_error=0.0021,
            tolerance=0.011,
            facts={"same next token as torch": "97.4%", "KL to fp32": "0.012 nats"},
        ),
        series=tuple(_series(random_)),
        failures=(
            FailureRow(label="gqa8/4608 x12", workload="decode@16384", reason="out of memory", detail="the agent was killed by signal 9"),
            FailureRow(label="rwkv/2560 x12", workload="prefill@512", reason="time-out", detail="no answer within 120 s"),
        ),
        advice=("Other processes used 21% of the machine meanwhile: close them and measure again.",),
        commands=("archsearch run space.toml --run RUN --device local --budget 'decode_ms@4096<=7' --budget 'memory_mb@4096<=360'",),
        versions={"archsearch": "0.1.0", "local": "onnxruntime 1.32.0"},
    )


def _time(label: str, context: int, ffn: int) -> float:
    _, base, slope = OPERATORS[label]
    return base * (0.45 + 0.55 * ffn / 4608) + slope * context


def _operators(random_: random.Random) -> list[OperatorCost]:
    common = {"hidden_size": 1024, "batch": 1, "precision": "int4", "threads": 2, "device": "local"}
    rows = []
    for label, (family, base, _) in OPERATORS.items():
        for ffn in FFNS:
            for phase, tokens, context in [("decode", 1, context) for context in CONTEXTS] + [("prefill", 512, 0), ("prefill", 128, 0)]:
                median = _time(label, context, ffn) if phase == "decode" else base * tokens * (0.2 + 0.1 * ffn / 4608)
                width = random_.uniform(0.02, 0.07)
                rows.append(
                    OperatorCost(
                        label=f"{label}/{ffn}",
                        operator=label,
                        family=family,
                        ffn=ffn,
                        phase=phase,  # type: ignore[arg-type]
                        tokens=tokens,
                        context=context,
                        time_ms=median,
                        low_ms=median * (1 - width),
                        high_ms=median * (1 + 1.4 * width),
                        rounds=8 if phase == "decode" else 6,
                        runs=400 if phase == "decode" else 48,
                        state_mb=0.008 if family == "conv" else 0.002 * context,
                        **common,
                    )
                )
    return rows


def _equal() -> list[EqualCost]:
    rows = []
    for at, (label, (family, _, _)) in enumerate(OPERATORS.items()):
        time, ffn = _time(label, 4096, 4608), 4608 - 150.0 * (at % 4)
        equal = {"ffn": ffn, "equal_ms": time * ffn / 4608, "equal_low_ms": time * ffn / 4700, "equal_high_ms": time * ffn / 4500}
        common = {"operator": label, "family": family, "workload": "decode@4096", "parameters": 17e6 + 4.6e5 * (at % 4), "outside": False}
        rows.append(EqualCost(time_ms=time, **common, **equal))
    return rows


def _samples(random_: random.Random) -> list[Samples]:
    def drawn(median: float) -> tuple[float, ...]:
        return tuple(median * (0.95 + random_.lognormvariate(-3, 0.8)) for _ in range(500))

    return [
        Samples(label=f"{label}/4608", family=family, workload=f"decode@{context}", milliseconds=drawn(_time(label, context, 4608)))
        for context in (4096, 16384)
        for label, (family, _, _) in OPERATORS.items()
    ]


def _roofline() -> list[RooflinePoint]:
    points = []
    for at, (label, (family, base, _)) in enumerate(OPERATORS.items()):
        points.append(RooflinePoint(label=f"{label}/4608", family=family, phase="decode", intensity=3.5 - 0.2 * at, gflops=36 / base * 0.9))
        points.append(RooflinePoint(label=f"{label}/4608", family=family, phase="prefill", intensity=900 + 60 * at, gflops=310 - 12 * at))
    return points


def _design(cells: tuple[Cell, ...], random_: random.Random, label: str = "") -> DesignRow:
    latency = sum(_time(cell.label, 4096, cell.ffn) for cell in cells)
    attention = sum(cell.family in ("gqa", "swa") for cell in cells)
    memory = 230 + sum(6.0 if cell.family == "gqa" else 1.5 for cell in cells) + sum(cell.ffn for cell in cells) / 2000
    feasible = latency <= LIMITS["decode_ms@4096"] and memory <= LIMITS["memory_mb@4096"]
    trained = bool(label) or (feasible and random_.random() < 0.3)
    solved = any(cell.family == "gqa" for cell in cells)
    return DesignRow(
        spec_id=f"{random_.getrandbits(48):012x}",
        pattern=" ".join(f"{cell.label} x1" for cell in cells[:3]) + f" ... ({LAYERS} layers)",
        cells=cells,
        hidden_size=1024,
        parameters=70e6 + sum(3 * 1024 * cell.ffn + 4.2e6 for cell in cells),
        latency_ms=latency,
        memory_mb=memory,
        feasible=feasible,
        why="" if feasible else f"decode_ms@4096 {latency:.2f} > 7",
        label=label,
        trained=trained,
        recall_accuracy=(1.0 if solved else random_.uniform(0.1, 0.6)) if trained else None,
        recall_solved=solved if trained else None,
        text_bits_per_byte=3.1 - 0.25 * math.log(1 + attention) - 0.02 * latency + random_.uniform(0, 0.12) if trained else None,
    )


def _designs(random_: random.Random) -> tuple[DesignRow, ...]:
    from dataclasses import replace

    def cell(label: str, ffn: int) -> Cell:
        return Cell(label=label, family=OPERATORS[label][0], ffn=ffn)

    rows = [_design(tuple(cell(label, 4608) for _ in range(LAYERS)), random_, f"all {label}") for label in ("conv3", "gqa8")]
    lfm2 = tuple(cell("gqa8" if at in (2, 5, 8, 10, 12, 14) else "conv3", 4608) for at in range(LAYERS))
    rows.append(_design(lfm2, random_, "LFM2's pattern"))
    for _ in range(240):
        favourite = random_.choice(list(OPERATORS))
        rows.append(
            _design(
                tuple(
                    cell(
                        random_.choice((*OPERATORS, favourite, "conv3", "conv3", "conv3", "conv7", "gla4", "swa256")), random_.choice(FFNS)
                    )
                    for _ in range(LAYERS)
                ),
                random_,
            )
        )
    solved = sorted((row for row in rows if row.trained and row.feasible and row.recall_solved), key=lambda row: row.latency_ms)
    front: list[DesignRow] = []
    for row in solved:
        assert row.text_bits_per_byte is not None
        if not front or row.text_bits_per_byte < (front[-1].text_bits_per_byte or 0):
            front.append(row)
    on_front = {row.spec_id for row in front}
    best = front[-1].spec_id
    return tuple(replace(row, on_front=row.spec_id in on_front, chosen=row.spec_id == best) for row in rows)


def _budgets(chosen: DesignRow) -> list[BudgetRow]:
    return [
        BudgetRow(metric="decode_ms@4096", unit="ms", limit=7.0, predicted=chosen.latency_ms, measured=chosen.latency_ms * 1.03),
        BudgetRow(metric="prefill_ms@512", unit="ms", limit=900.0, predicted=871.0, measured=962.0),
        BudgetRow(metric="memory_mb@4096", unit="MB", limit=360.0, predicted=chosen.memory_mb, measured=341.0),
        BudgetRow(metric="parameters", unit="", limit=400e6, predicted=chosen.parameters),
    ]


def _held_out() -> list[HeldOutRow]:
    errors = (-0.08, -0.03, -0.01, 0.0, 0.02, 0.04)
    return [
        HeldOutRow(
            layout=f"random {n}",
            workload="decode@4096",
            setting="int4, 1 thread",
            unit="ms",
            predicted=6.0 * (1 + error),
            measured=6.0,
            error=error,
            low=6.0 * (1 + error) - 0.18,
            high=6.0 * (1 + error) + 0.18,
            covered=abs(error) < 0.03,
        )
        for n, error in enumerate(errors)
    ]


def _predicted(random_: random.Random) -> list[PredictedRow]:
    rows = []
    for model, trained in (("trained model", True), ("all conv3", False), ("LFM2's pattern", False)):
        for workload, predicted in (("decode@1024", 5.1), ("decode@4096", 5.8), ("prefill@512", 871.0)):
            value = predicted * random_.uniform(0.9, 1.2)
            measured = value * random_.uniform(0.94, 1.07)
            rows.append(
                PredictedRow(
                    model=model,
                    trained=trained,
                    workload=workload,
                    unit="ms",
                    predicted=value,
                    low=value * 0.96,
                    high=value * 1.05,
                    measured=measured,
                    p95=measured * random_.uniform(1.02, 1.2),
                    drift=random_.uniform(0.98, 1.05),
                )
            )
        rows.append(
            PredictedRow(
                model=model, trained=trained, workload="memory@4096", unit="MB", predicted=338.0, low=None, high=None, measured=341.0
            )
        )
    rows.append(
        PredictedRow(
            model="LFM2's pattern", trained=False, workload="decode@16384", unit="ms", predicted=9.7, low=9.4, high=10.1, measured=None
        )
    )
    return rows


def _memory() -> list[MemoryRow]:
    return [
        MemoryRow(
            context=context,
            parts_mb={
                "weights": 196.0,
                "embedding and head": 38.0,
                "caches": 0.0063 * context,
                "session and activations": 22.0,
                "process": 57.0,
            },
            measured_mb={1024: 324.0, 4096: 341.0}.get(context),
        )
        for context in CONTEXTS
    ]


def _parameters() -> tuple[ParameterRow, ...]:
    def row(model: str, own: bool, **parts: int) -> ParameterRow:
        total = sum(parts.values())
        return ParameterRow(model=model, own=own, parts=parts, embedding_share=parts["embedding"] / total, source="invented")

    return (
        row(
            "chosen layout",
            True,
            embedding=67_108_864,
            short_conv=42_000_000,
            gqa=15_800_000,
            gla=9_300_000,
            swa=6_300_000,
            ffn=210_000_000,
            norms=34_000,
        ),
        row("Model A 270M", False, embedding=168_000_000, swa=24_000_000, gqa=5_000_000, ffn=71_000_000, norms=47_000),
        row("Model B 350M", False, embedding=67_000_000, short_conv=42_000_000, gqa=19_000_000, ffn=226_000_000, norms=34_000),
        row(
            "Model C 0.8B (with vision)",
            False,
            embedding=254_000_000,
            gated_deltanet=150_000_000,
            gqa=47_000_000,
            ffn=300_000_000,
            norms=50_000,
            vision=100_000_000,
        ),
    )


def _plan() -> Plan:
    """Two made-up laws for a layout of 350M parameters on 2T tokens; the second has no interval and had not seen this size."""
    tokens = tuple(1e9 * 1.2**step for step in range(61))

    def law(name: str, floor: float, exponent: float, spread: float, fitted: tuple[float, float] | None) -> PlanLaw:
        def loss(d: float) -> float:
            return floor + 0.5 + (8e9 / d) ** exponent / 3

        curve = PlanCurve(
            tokens=tokens,
            loss=tuple(map(loss, tokens)),
            low=tuple(loss(d) - spread for d in tokens) if spread else (),
            high=tuple(loss(d) + spread for d in tokens) if spread else (),
            total_flops=tuple(2.1e9 * d + 7e20 for d in tokens),
            least_flops=tuple(1.9e9 * d**0.9 * 2 + 7e20 for d in tokens),
            fitted=fitted,
        )
        return PlanLaw(
            name=name,
            source="an invented paper, table 1",
            tokens=2e12,
            loss=loss(2e12),
            loss_low=loss(2e12) - spread if spread else None,
            loss_high=loss(2e12) + spread if spread else None,
            total_flops=2.1e9 * 2e12 + 7e20,
            optimal_tokens=8e9,
            optimal_loss=loss(8e9),
            excess=0.251,
            same_loss=(1.9e9, 4.2e10),
            compute_ratio=9.4,
            break_even=1.3e12,
            right_for=None if fitted is None else 1.1e14,
            lifetime=(4.4e8, 1.1e12, 3.8e21),
            beyond_fit=("2.00T tokens (its fit saw 819M to 318B)",),
            curve=curve,
        )

    return Plan(
        spec="chosen layout",
        spec_id="0123456789ab",
        chosen=True,
        parameters=350e6,
        tokens=2e12,
        inference_tokens=1e12,
        hours="3,100 h100 hours at 40 % MFU",
        laws=(law("first", 1.8, 0.36, 0.03, (1e9, 1.2e11)), law("second", 1.7, 0.28, 0.0, None)),
        notes=("Expect a higher loss.",),
    )


def _training(random_: random.Random) -> Training:
    steps = tuple(
        TrainingStep(
            step=step,
            tokens=step * 8192,
            loss_nats=2.1 + 6.2 * math.exp(-step / 160) + 2.2 * math.exp(-step / 900) + random_.gauss(0, 0.09),
        )
        for step in range(4, 1540, 4)
    )
    return Training(
        steps=steps,
        held_out=tuple(
            HeldOutPoint(step=step, tokens=step * 8192, bits_per_byte=1.7 + 2.2 * math.exp(-step / 160) + 0.9 * math.exp(-step / 800))
            for step in range(100, 1540, 160)
        ),
        samples=(
            TextSample(
                prompt='def median(values):\n    """The middle of',
                text=' a list.\n\n    Raises ValueError when it is empty.\n    """\n    if not values:',
                temperature=0.0,
            ),
            TextSample(
                prompt="class Reader:\n    def read(self, size=-1):",
                text="\n        if size is None:\n            size = -1\n        return self._buffer[:size]",
                temperature=0.8,
                reference="\n        return self.raw.read(size)",
            ),
        ),
        facts={"data": "Python standard library sources", "tokens": "12.58M", "speed": "8,140 tokens/s", "time": "25.8 min"},
    )


def _series(random_: random.Random) -> list[SeriesRow]:
    return [
        SeriesRow(
            started=f"2026-01-01T00:{at:02d}:00+00:00",
            device="local",
            agent="python-1",
            runtime="onnxruntime 1.32.0 CPUExecutionProvider",
            threads=2,
            cores="0, 1",
            clock_mhz=2400 + random_.uniform(-50, 50),
            temperature_c=None,
            load_1m=random_.uniform(0.1, 2.5),
            busy_other_share=random_.uniform(0.0, 0.3),
            steal_ticks=at,
            huge_pages="madvise",
            governor=None,
            measurements=96,
            rounds=48,
            spread=random_.uniform(0.01, 0.09),
            flags=("others used the machine",) if at % 2 else (),
        )
        for at in range(4)
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(sample_report()), encoding="utf-8")
