"""What a phone is, in its own words: one question, asked in a way that every Android shell since 7 answers, without root."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from devices.base import DeviceInfo

QUESTION = r"""getprop
echo "====cpus"
for c in /sys/devices/system/cpu/cpu[0-9]*; do
  k=-; f=-
  [ -r $c/cpu_capacity ] && read -r k <$c/cpu_capacity
  [ -r $c/cpufreq/cpuinfo_max_freq ] && read -r f <$c/cpufreq/cpuinfo_max_freq
  echo "${c##*/cpu} $k $f"
done
echo "====allowed"; while read -r k f; do [ "$k" = Cpus_allowed_list: ] && echo "$f"; done </proc/self/status
echo "====memory"; read -r k </proc/meminfo; echo "$k"
echo "====kernel"; [ -r /proc/sys/kernel/arch ] && read -r k </proc/sys/kernel/arch && echo "$k"; uname -m
echo "====end"
"""
EMULATORS = ("ro.boot.qemu", "ro.kernel.qemu")
"""Properties by which Android's emulators give themselves away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Cores of one kind. `capacity` is the kernel's, 1024 for the fastest; `max_mhz` the highest clock."""

    cores: tuple[int, ...]
    capacity: int | None
    max_mhz: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A phone's answer. `clusters` are ordered from the fastest to the slowest."""

    properties: dict[str, str]
    clusters: tuple[Cluster, ...]
    allowed: tuple[int, ...]
    """Cores that the shell, and so an agent, may use."""
    memory_bytes: int
    machine: str
    emulated: bool

    @property
    def abis(self) -> tuple[str, ...]:
        text = self.properties.get("ro.product.cpu.abilist") or self.properties.get("ro.product.cpu.abi", "")
        return tuple(filter(None, text.split(",")))

    @property
    def cores(self) -> int:
        return sum(len(cluster.cores) for cluster in self.clusters)


def parse(answer: str) -> Description:
    """What the answer to `QUESTION` says; what it leaves out is empty."""
    parts = dict(re.findall(r"^====(\w+)\r?$(.*?)(?=^====)", answer, re.M | re.S))
    properties = dict(re.findall(r"^\[([\w.\-]+)\]: \[(.*)\]\r?$", answer.partition("====cpus")[0], re.M))
    memory = re.search(r"MemTotal:\s+(\d+) kB", parts.get("memory", ""))
    *kernel, machine = parts.get("kernel", "").split() or [""]
    # qemu answers for uname, and not for the kernel's own file (since 6.1): where they differ, another machine computes.
    foreign = bool(kernel) and kernel[0] != machine and not (kernel[0] == "aarch64" and machine.startswith("armv"))
    return Description(
        properties=properties,
        clusters=clusters(parts.get("cpus", "")),
        allowed=parse_list(parts.get("allowed", "")),
        memory_bytes=int(memory[1]) * 1024 if memory else 0,
        machine=machine,
        emulated=foreign or any(properties.get(name) == "1" for name in EMULATORS),
    )


def clusters(lines: str) -> tuple[Cluster, ...]:
    """Clusters from lines of core number, capacity and highest clock in kHz, "-" for what a core does not tell."""
    found: dict[tuple[int | None, int | None], list[int]] = {}
    for line in lines.split("\n"):
        fields = line.split()
        if len(fields) == 3 and fields[0].isdigit():
            capacity, khz = (int(text) if text.isdigit() else None for text in fields[1:])
            found.setdefault((capacity, khz // 1000 if khz is not None else None), []).append(int(fields[0]))
    kinds = [Cluster(cores=tuple(sorted(cores)), capacity=capacity, max_mhz=mhz) for (capacity, mhz), cores in found.items()]
    return tuple(sorted(kinds, key=lambda cluster: (-(cluster.capacity or 0), -(cluster.max_mhz or 0), cluster.cores)))


def parse_list(text: str) -> tuple[int, ...]:
    """Numbers from the kernel's way of listing them, "0-3,7"."""
    found: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def biggest(kinds: Sequence[Cluster], threads: int, allowed: Sequence[int]) -> tuple[int, ...] | None:
    """Which cores to pin `threads` threads to: the fastest cluster first, and in it the highest numbers; None when nothing is known.

    Core 0 serves most interrupts, and is taken last.
    """
    ranked = [core for cluster in kinds for core in sorted(cluster.cores, reverse=True) if not allowed or core in allowed]
    return tuple(sorted(ranked[:threads])) or None


def device_info(device_id: str, description: Description, *, runtime: str | None, problem: str | None) -> DeviceInfo:
    """The phone as the rest of archsearch sees it. Its fingerprint is that of the one phone, however it is attached."""
    properties = description.properties

    def first(*names: str) -> str:
        return next((properties[name] for name in names if properties.get(name)), "")

    maker, model = first("ro.product.manufacturer"), first("ro.product.model")
    chip = " ".join(filter(None, [first("ro.soc.manufacturer"), first("ro.soc.model", "ro.board.platform")]))
    serial = first("ro.serialno", "ro.boot.serialno") or device_id
    emulated = "(emulated)" if description.emulated else ""
    extra = {
        "state": "device",
        "serial": serial,
        "abis": list(description.abis),
        "clusters": [asdict(cluster) | {"cores": list(cluster.cores)} for cluster in description.clusters],
        "soc": chip,
        "sdk": first("ro.build.version.sdk"),
        "build": first("ro.build.fingerprint"),
    }
    identity = f"{serial}|{maker}|{model}|{chip}|{description.machine}"
    return DeviceInfo(
        device_id=device_id,
        name=" ".join(filter(None, [maker, model])) or device_id,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:12],
        system=" ".join(filter(None, ["Android", first("ro.build.version.release"), first("ro.product.cpu.abi"), emulated])),
        cpu=chip,
        cores=description.cores,
        memory_bytes=description.memory_bytes,
        runtime=runtime,
        available=problem is None,
        problem=problem,
        extra=extra | ({"emulated": True} if description.emulated else {}),
    )
