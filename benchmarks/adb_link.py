"""Does the link change what is measured? One agent, run directly and through a real adbd on this machine, by turns; prints the ratio.

    python benchmarks/adb_link.py [--processes 12] [--rounds 6]

adbd runs in namespaces on this very machine (tests/phone), so the two differ by nothing but the link. Goal: within 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from archsearch.cases import block_subject, make_case, write_subject
from archsearch.workload import Workload
from devices.adb.device import PhoneDevice
from devices.base import Device
from devices.bundle import Bundle
from devices.local import LocalDevice
from devices.plan import Case, Failed, RoundResult, RunPlan
from operators.graph import read_info
from operators.specs import BlockSpec, FfnSpec, GqaSpec, ModelDims, ShortConvSpec
from tests.phone.bundles import python_bundle
from tests.phone.phone import FakePhone

GOAL = 0.03
COPIES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=12, help="of each kind")
    parser.add_argument("--rounds", type=int, default=6, help="in each process")
    parser.add_argument("--min-time-ms", type=float, default=100.0)
    parser.add_argument("--bundle", type=Path, help="an agent bundle for this machine; default: the Python agent")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, FakePhone("amd64") as phone:
        place = Path(directory)
        cases = tuple(_cases(place))
        bundle = options.bundle or python_bundle(place / "bundle")
        plan = RunPlan(cases=cases, rounds=options.rounds, min_time_ns=int(options.min_time_ms * 1e6), max_wait_s=1.0)
        direct: Device = LocalDevice((str(bundle / "agent"),))
        # Both on the same core; a phone's habits must not choose another here.
        phone_device = PhoneDevice(f"adb:{phone.address}", lambda abis: Bundle.read(bundle))
        core = phone_device.description.allowed[-1]
        plan = replace(plan, cores=(core,))
        found: dict[str, dict[str, list[float]]] = {"directly": {}, "through adbd": {}}
        for number in range(options.processes):
            order: Sequence[tuple[str, Device]] = [("directly", direct), ("through adbd", phone_device)]
            for name, device in order if number % 2 == 0 else reversed(order):
                _measure(device, replace(plan, seed=number), found[name])
    print(f"{options.processes} processes of each kind, by turns, {options.rounds} rounds each; lower quartile of the rounds' medians, us")
    worst = 0.0
    for case in cases:
        ratio, low, high = _ratio(found["through adbd"][case.case_id], found["directly"][case.case_id])
        worst = max(worst, abs(ratio - 1))
        times = [_value(found[name][case.case_id]) for name in ("directly", "through adbd")]
        both = f"directly {times[0]:8.1f}   through adbd {times[1]:8.1f}"
        print(f"  {case.case_id:<12} {both}   ratio {ratio:.3f}  90 % [{low:.3f}, {high:.3f}]")
    print(f"farthest from 1: {worst:.1%}; goal {GOAL:.0%}: {'reached' if worst <= GOAL else 'missed'}")


def _cases(place: Path) -> list[Case]:
    """Decoding with two operators, chains as a profile measures them."""
    dims = ModelDims(hidden_size=512)
    found = []
    operators = {"short_conv": ShortConvSpec(), "gqa": GqaSpec(heads=8, kv_heads=4, head_dim=64)}
    for name, operator in operators.items():
        block = BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=1536))
        workload = Workload(phase="decode", tokens=1, context=512)
        path = write_subject(block_subject(block, dims, COPIES), place, precision=workload.precision, max_context=workload.cache + 1)
        found.append(make_case(name, path, read_info(path), workload))
    return found


def _measure(device: Device, plan: RunPlan, into: dict[str, list[float]]) -> None:
    for event in device.run(plan):
        match event:
            case RoundResult():
                into.setdefault(event.case_id, []).append(statistics.median(event.wall_ns) / 1e3)
            case Failed():
                raise SystemExit(f"{event.case_id}: {event.reason}: {event.detail}")


def _value(rounds_us: Sequence[float]) -> float:
    return float(np.quantile(rounds_us, 0.25))


def _ratio(adb: Sequence[float], direct: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Ratio of the lower quartiles, with its 90 % bootstrap interval over rounds."""
    generator = np.random.default_rng(0)
    drawn = [
        np.quantile(generator.choice(adb, len(adb)), 0.25) / np.quantile(generator.choice(direct, len(direct)), 0.25) for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return _value(adb) / _value(direct), float(low), float(high)


if __name__ == "__main__":
    main()
