"""`Space`: what a search may choose from, what is measured for it, and within which budgets. Read from TOML; no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from archsearch.budgets import Budget, budgets_from_table, held_from_table
from archsearch.errors import BudgetError, FileFormatError
from archsearch.spec import ArchSpec, from_pydantic, operator_to_dict, parse_ffn, parse_operator, read_table
from archsearch.workload import Workload
from operators.specs import BlockSpec, FfnSpec, ModelDims, OperatorSpec, Precision

LEAST_POSITIONS = 128
Positive = Annotated[int, Field(ge=1)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _ModelTable(_Strict):
    name: Annotated[str, Field(min_length=1)] = "layout"
    hidden_size: Annotated[list[Annotated[int, Field(ge=8)]], Field(min_length=1)]
    vocab_size: Annotated[int, Field(ge=2)]
    layers: Annotated[list[Positive], Field(min_length=1)]
    tie_embeddings: bool = True
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 1e6

    _lists = field_validator("hidden_size", "layers", mode="before")(_listed)


class _WorkloadTable(_Strict):
    prefill: list[Positive] = [512]
    decode: list[Annotated[int, Field(ge=0)]] = [1024]
    batch: Annotated[list[Positive], Field(min_length=1)] = [1]

    _lists = field_validator("prefill", "decode", "batch", mode="before")(_listed)


class MeasureSettings(_Strict):
    """How blocks are measured: `passes` fresh processes of `rounds` shuffled rounds, each case at least `min_time_ms` long.

    What is still uncertain by more than `interval` (half of the 90 % interval over the value) is measured in further passes, up to
    `max_passes`. `separate`: every operator with the widest FFN and every FFN with the first operator, in place of all pairs.
    """

    precision: Annotated[list[Precision], Field(min_length=1)] = ["int4"]
    threads: Annotated[list[Positive], Field(min_length=1)] = [1]
    passes: Positive = 2
    max_passes: Positive = 6
    interval: Annotated[float, Field(gt=0)] = 0.02
    separate: bool = True
    rounds: Positive = 10
    min_time_ms: Annotated[float, Field(gt=0)] = 30.0
    min_runs: Positive = 1
    timeout_s: Annotated[float, Field(gt=0)] = 300.0

    _lists = field_validator("precision", "threads", mode="before")(_listed)


class SearchSettings(_Strict):
    """`trials` candidates are trained to the end, of `halving` times as many that are begun; each for at most `recall_steps` steps on
    every synthetic task of `tasks`, and `text_steps` on text. `baseline`: a spec file."""

    trials: Positive = 16
    halving: Annotated[int, Field(ge=1, le=8)] = 2
    tasks: Annotated[list[Literal["recall", "selective_copy", "noisy_recall"]], Field(min_length=1)] = ["recall"]
    baseline: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    recall_steps: Positive = 400
    text_steps: Positive = 300

    _lists = field_validator("tasks", mode="before")(_listed)

    @field_validator("tasks")
    @classmethod
    def _recall_is_one(cls, tasks: list[str]) -> list[str]:
        if "recall" not in tasks:
            raise ValueError("recall must be among them: it is what layouts are chosen by")
        return list(dict.fromkeys(tasks))


class TrainTable(_Strict):
    """How the chosen spec is trained by `archsearch run`: for `minutes`, or for `tokens`."""

    minutes: Annotated[float, Field(gt=0)] | None = None
    tokens: Positive | None = None
    data: list[str] = []


class _SpaceFile(_Strict):
    model: _ModelTable
    operators: Annotated[list[dict[str, Any]], Field(min_length=1)]
    ffn: dict[str, Any]
    workloads: _WorkloadTable = _WorkloadTable()
    measure: MeasureSettings = MeasureSettings()
    budgets: dict[str, Any] = {}
    hold: dict[str, Any] = {}
    search: SearchSettings = SearchSettings()
    train: TrainTable = TrainTable()


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Attributes:
        operators: every operator that a layer may be, choices expanded.
        ffns: every FFN that a layer may have.
        hidden_sizes, depths: choices for the whole model.
        budgets: hard limits, as the file gives them.
        hold: sizes that are held, as `archsearch.budgets.parse_held` reads them.
    """

    name: str
    hidden_sizes: tuple[int, ...]
    depths: tuple[int, ...]
    vocab_size: int
    tie_embeddings: bool
    norm_eps: float
    rope_theta: float
    operators: tuple[OperatorSpec, ...]
    ffns: tuple[FfnSpec, ...]
    prefill: tuple[int, ...]
    decode: tuple[int, ...]
    batches: tuple[int, ...]
    measure: MeasureSettings
    search: SearchSettings
    train: TrainTable
    budgets: tuple[Budget, ...]
    hold: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | str) -> Space:
        """Read a space file.

        Raises:
            FileFormatError: names the file and the field that is unknown, missing, of the wrong type or impossible.
        """
        return cls.from_dict(read_table(path), path=path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, path: Path | str | None = None) -> Space:
        """Check plain data strictly; see `read`."""
        try:
            file = _SpaceFile.model_validate(dict(data))
        except ValidationError as error:
            raise from_pydantic(path, error) from error
        model = file.model
        operators = _operators(file, path)
        ffns = tuple(
            parse_ffn({**file.ffn, "intermediate_size": width}, path, "ffn") for width in _listed(file.ffn.get("intermediate_size", []))
        )
        if not ffns:
            raise FileFormatError(path, "ffn.intermediate_size", "missing; a width, or a list of widths to choose from")
        if not file.workloads.decode and not file.workloads.prefill:
            raise FileFormatError(path, "workloads", "neither prefill nor decode: nothing would be measured")
        try:
            budgets = budgets_from_table(file.budgets)
        except BudgetError as error:
            raise FileFormatError(path, "budgets", str(error)) from error
        try:
            hold = held_from_table(file.hold)
        except BudgetError as error:
            raise FileFormatError(path, "hold", str(error)) from error
        space = cls(
            name=model.name,
            hidden_sizes=tuple(model.hidden_size),
            depths=tuple(model.layers),
            vocab_size=model.vocab_size,
            tie_embeddings=model.tie_embeddings,
            norm_eps=model.norm_eps,
            rope_theta=model.rope_theta,
            operators=operators,
            ffns=ffns,
            prefill=tuple(file.workloads.prefill),
            decode=tuple(file.workloads.decode),
            batches=tuple(file.workloads.batch),
            measure=file.measure,
            search=file.search,
            train=file.train,
            budgets=budgets,
            hold=hold,
        )
        space._refuse_repeats(path)
        return space

    def _refuse_repeats(self, path: Path | str | None) -> None:
        for where, choices in {
            "model.hidden_size": self.hidden_sizes,
            "model.layers": self.depths,
            "operators": self.operators,
            "ffn.intermediate_size": self.ffns,
            "workloads.prefill": self.prefill,
            "workloads.decode": self.decode,
            "workloads.batch": self.batches,
            "measure.precision": self.measure.precision,
            "measure.threads": self.measure.threads,
        }.items():
            if len(set(choices)) < len(choices):
                repeated = next(choice for choice in choices if list(choices).count(choice) > 1)
                raise FileFormatError(path, where, f"{repeated} is given twice; remove one")
        if self.train.minutes is not None and self.train.tokens is not None:
            raise FileFormatError(path, "train", "minutes and tokens exclude each other; remove one")
        for budget in self.budgets:
            if budget.metric.kind == "memory_mb" and not self.decode:
                raise FileFormatError(
                    path, f"budgets.{budget.metric}", "memory is measured while decoding; give workloads.decode a context"
                )

    def dims(self, hidden_size: int) -> ModelDims:
        return ModelDims(hidden_size=hidden_size, norm_eps=self.norm_eps, rope_theta=self.rope_theta)

    @property
    def all_dims(self) -> tuple[ModelDims, ...]:
        return tuple(self.dims(size) for size in self.hidden_sizes)

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """Every block that a layer may be."""
        return tuple(BlockSpec(operator=operator, ffn=ffn) for operator in self.operators for ffn in self.ffns)

    @property
    def measured_blocks(self) -> tuple[BlockSpec, ...]:
        """The blocks whose chains are measured: with `measure.separate`, o + f - 1 of the o x f that a layer may be."""
        if not self.measure.separate:
            return self.blocks
        widest = max(self.ffns, key=lambda ffn: ffn.intermediate_size)
        return tuple(block for block in self.blocks if block.ffn == widest or block.operator == self.operators[0])

    @property
    def precision(self) -> Precision:
        """The precision that metrics without one mean: the first."""
        return self.measure.precision[0]

    @property
    def threads(self) -> int:
        """The thread count that metrics without one mean: the first."""
        return self.measure.threads[0]

    @property
    def batch(self) -> int:
        return self.batches[0]

    @property
    def max_context(self) -> int:
        """Most positions that any workload needs."""
        return max(workload.cache for workload in self.workloads())

    @property
    def positions(self) -> int:
        """Positions that graphs are written for: all workloads, and room for the check of their outputs."""
        return max(self.max_context + 1, LEAST_POSITIONS)

    def workloads(self, precision: Precision | None = None, threads: int | None = None) -> tuple[Workload, ...]:
        """All workloads, or those of one precision and thread count."""
        precisions = self.measure.precision if precision is None else [precision]
        counts = self.measure.threads if threads is None else [threads]
        return tuple(
            workload
            for p, n, batch in itertools.product(precisions, counts, self.batches)
            for workload in (
                *(Workload(phase="prefill", tokens=tokens, context=0, batch=batch, precision=p, threads=n) for tokens in self.prefill),
                *(Workload(phase="decode", tokens=1, context=context, batch=batch, precision=p, threads=n) for context in self.decode),
            )
        )

    @property
    def size(self) -> int:
        """Number of layouts."""
        return len(self.hidden_sizes) * sum(int(len(self.blocks) ** depth) for depth in self.depths)

    @property
    def space_id(self) -> str:
        """Twelve hex digits over what may be chosen (not over workloads, budgets or settings)."""
        choices = {
            "hidden": self.hidden_sizes,
            "depths": self.depths,
            "vocab": self.vocab_size,
            "tied": self.tie_embeddings,
            "eps": self.norm_eps,
            "theta": self.rope_theta,
            "operators": [operator_to_dict(operator) for operator in self.operators],
            "ffns": [ffn.intermediate_size for ffn in self.ffns],
        }
        return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:12]

    def spec(
        self,
        layers: Sequence[BlockSpec],
        *,
        hidden_size: int | None = None,
        name: str | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> ArchSpec:
        """The spec of a layout."""
        return ArchSpec(
            name=name or self.name,
            hidden_size=hidden_size or self.hidden_sizes[0],
            vocab_size=self.vocab_size,
            tie_embeddings=self.tie_embeddings,
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
            layers=tuple(layers),
            origin=origin or {},
        )


def _operators(file: _SpaceFile, path: Path | str | None) -> tuple[OperatorSpec, ...]:
    found: list[OperatorSpec] = []
    for i, table in enumerate(file.operators):
        for choice in _expanded(table):
            for hidden_size in file.model.hidden_size:
                dims = ModelDims(hidden_size=hidden_size, norm_eps=file.model.norm_eps, rope_theta=file.model.rope_theta)
                spec = parse_operator(choice, dims, path, f"operators.{i}")
            found.append(spec)
    return tuple(found)


def _expanded(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the fields that are lists."""
    fields = [[(key, value) for value in _listed(choices)] for key, choices in table.items()]
    return (dict(combination) for combination in itertools.product(*fields))
