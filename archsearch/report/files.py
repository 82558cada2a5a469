"""The files of a run, as a report needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from archsearch.emulated import refuse, usable
from archsearch.files import read_json
from archsearch.predict import CostTable
from archsearch.space import Space
from archsearch.spec import ArchSpec
from archsearch.store import Row, Store


@dataclass
class RunFiles:
    """A run directory, each file read when it is first asked for."""

    run_dir: Path

    @cached_property
    def space(self) -> Space:
        return Space.read(self.run_dir / "space.toml")

    @cached_property
    def store(self) -> Store:
        return Store(self.run_dir / "measurements.db", create=False)

    @cached_property
    def infos(self) -> list[dict[str, Any]]:
        """The devices whose times may be taken as numbers.

        Raises:
            EmulatedTimesError: there are others only.
        """
        known = self.store.devices()
        found = [info for info in known if usable(info.get("extra", {}))]
        if known and not found:
            refuse(known[0]["device_id"], known[0]["extra"])
        return found

    @cached_property
    def rows(self) -> list[Row]:
        fingerprints = {info["fingerprint"] for info in self.infos}
        return [row for row in self.store.rows() if row.fingerprint in fingerprints]

    @cached_property
    def tables(self) -> dict[str, CostTable]:
        return {info["device_id"]: CostTable.load(self.store, device=info["fingerprint"]) for info in self.infos}

    @cached_property
    def search(self) -> dict[str, Any] | None:
        path = self.run_dir / "search.json"
        return read_json(path) if path.exists() else None

    @cached_property
    def validation(self) -> dict[str, Any] | None:
        """What `archsearch validate` found; None where it was not run for this space."""
        path = self.run_dir / "validation.json"
        found = read_json(path) if path.exists() else None
        return found if found and found.get("space_id") == self.space.space_id else None

    @cached_property
    def confirmation(self) -> dict[str, Any] | None:
        """What `archsearch confirm` found; None where it was not run for this space."""
        path = self.run_dir / "confirmation.json"
        found = read_json(path) if path.exists() else None
        return found if found and found.get("space_id", self.space.space_id) == self.space.space_id else None

    @cached_property
    def device(self) -> str:
        """The device that the search was for; else the first."""
        wanted = self.search["device"] if self.search else None
        return wanted if wanted in self.tables else next(iter(self.tables))

    @property
    def searched_for(self) -> tuple[str, ...]:
        """The devices that the search was for; else the first alone."""
        return tuple(name for name in (self.search.get("devices") if self.search else None) or () if name in self.tables) or (self.device,)

    @property
    def table(self) -> CostTable:
        return self.tables[self.device]

    @cached_property
    def chosen(self) -> ArchSpec | None:
        path = self.run_dir / "spec.toml"
        return ArchSpec.read(path) if path.exists() and self.search and self.search["best"] else None

    @cached_property
    def benches(self) -> list[dict[str, Any]]:
        return [read_json(path) for path in sorted((self.run_dir / "bench").glob("*.json"))]

    def limit(self, name: str) -> float | None:
        """A limit of the search's device, bytes or operations a second; None where it was not measured."""
        path = self.run_dir / "limits.json"
        found = read_json(path).get(self.device, []) if path.exists() else []
        return next((entry["per_second"] for entry in found if entry["limit"] == name), None)

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


def trained_measurements(run: RunFiles) -> dict[str, float]:
    """What the trained model was measured at, by metric; of other devices than the search's first with their names before it."""
    found: dict[str, float] = {}
    for document in run.benches:
        if document["name"] != "trained model" or document["device"] not in run.tables or run.chosen is None:
            continue
        whose = "" if document["device"] == run.device else f"{document['device']}/"
        if document["spec_id"] != run.chosen.spec_id:
            continue
        for row in document["workloads"]:
            name = whose + (f"decode_ms@{row['context']}" if row["phase"] == "decode" else f"prefill_ms@{row['tokens']}")
            if row["measured_ms"] is not None:
                found[name] = row["measured_ms"]
        found |= {f"{whose}memory_mb@{row['context']}": row["measured_mb"] for row in document["memory"] if row["measured_mb"] is not None}
    return found
