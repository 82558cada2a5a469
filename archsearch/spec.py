"""`ArchSpec`: an architecture as data, and the files it is read from and written to. No torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from archsearch.errors import FileFormatError
from archsearch.files import write_atomic
from operators.kinds import operator_for
from operators.specs import BlockSpec, FfnSpec, ModelDims, OperatorSpec, SpecError


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """A decoder-only language model: embedding, layers, final RMSNorm, head.

    Attributes:
        name: for people; not part of the identity.
        layers: one block a layer, first to last.
        origin: where the spec came from (study, trial, device, predicted costs); not part of the identity.
    """

    name: str
    hidden_size: int
    vocab_size: int
    layers: tuple[BlockSpec, ...]
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def dims(self) -> ModelDims:
        return ModelDims(hidden_size=self.hidden_size, norm_eps=self.norm_eps, rope_theta=self.rope_theta)

    @cached_property
    def spec_id(self) -> str:
        """Twelve hex digits of SHA-256 over the canonical form: equal for equal architectures, whatever their name."""
        data = self.to_dict()
        for key in ("name", "origin"):
            data.pop(key, None)
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def pattern(self) -> str:
        """Operators in order, runs folded: "conv3 x2, gqa2, conv3"."""
        runs: list[tuple[str, int]] = []
        for block in self.layers:
            label = operator_for(block.operator).label(block.operator)
            if runs and runs[-1][0] == label:
                runs[-1] = (label, runs[-1][1] + 1)
            else:
                runs.append((label, 1))
        return ", ".join(label if n == 1 else f"{label} x{n}" for label, n in runs)

    def block_counts(self) -> Counter[BlockSpec]:
        """How often each distinct block occurs."""
        return Counter(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the order of the file format."""
        data: dict[str, Any] = {
            "name": self.name,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "tie_embeddings": self.tie_embeddings,
            "norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
        }
        if self.origin:
            data["origin"] = dict(self.origin)
        data["layers"] = [block_to_dict(block) for block in self.layers]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, path: Path | str | None = None) -> ArchSpec:
        """Check plain data strictly.

        Raises:
            FileFormatError: names the field that is unknown, missing, of the wrong type or impossible.
        """
        try:
            file = _SpecFile.model_validate(dict(data))
        except ValidationError as error:
            raise from_pydantic(path, error) from error
        dims = ModelDims(hidden_size=file.hidden_size, norm_eps=file.norm_eps, rope_theta=file.rope_theta)
        layers = tuple(
            BlockSpec(
                operator=parse_operator(layer.operator, dims, path, f"layers.{i}.operator"),
                ffn=parse_ffn(layer.ffn, path, f"layers.{i}.ffn"),
            )
            for i, layer in enumerate(file.layers)
        )
        return cls(**(file.model_dump(exclude={"layers"}) | {"layers": layers, "origin": _plain_origin(file.origin, path)}))

    @classmethod
    def read(cls, path: Path | str) -> ArchSpec:
        """Read a TOML or JSON spec file.

        Raises:
            FileFormatError: the file is missing, does not parse, or is no valid spec.
        """
        return cls.from_dict(read_table(path), path=path)

    def write(self, path: Path | str) -> None:
        """Write TOML, or JSON where the path ends in .json; complete or not at all."""
        path = Path(path)
        write_atomic(path, self.to_json() if path.suffix == ".json" else self.to_toml())

    def to_toml(self) -> str:
        """The spec as a TOML document; equal layers stay separate, so that one can be edited."""
        data = self.to_dict()
        layers = data.pop("layers")
        head = tomli_w.dumps(data)
        body = "".join("\n[[layers]]\n" + "".join(f"{key} = {_inline(table)}\n" for key, table in layer.items()) for layer in layers)
        return head + body

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


class _LayerFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    operator: dict[str, Any]
    ffn: dict[str, Any]


class _SpecFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    name: Annotated[str, Field(min_length=1)]
    hidden_size: Annotated[int, Field(ge=8)]
    vocab_size: Annotated[int, Field(ge=2)]
    tie_embeddings: bool = True
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    rope_theta: Annotated[float, Field(gt=0)] = 1e6
    origin: dict[str, Any] = {}
    layers: Annotated[list[_LayerFile], Field(min_length=1)]


def _plain_origin(origin: dict[str, Any], path: Path | str | None) -> dict[str, Any]:
    """What both TOML and JSON can keep: dates as text."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(origin, default=str, allow_nan=False))
        tomli_w.dumps(plain)
    except (TypeError, ValueError) as error:
        raise FileFormatError(path, "origin", "holds null, inf or nan, which not every file format can keep; leave it out") from error
    return plain


def parse_operator(data: Mapping[str, Any], dims: ModelDims, path: Path | str | None, where: str) -> OperatorSpec:
    """An operator's spec from a table with a `kind`.

    Raises:
        FileFormatError: unknown kind or key, wrong type, impossible dimensions; with the path to the field.
    """
    fields = dict(data)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str):
        raise FileFormatError(path, f"{where}.kind", 'missing; it names the operator, for example kind = "short_conv"')
    try:
        operator = operator_for(kind)
        spec = TypeAdapter(operator.spec_type).validate_json(json.dumps(fields, default=str))
        operator.check(spec, dims)
    except ValidationError as error:
        raise from_pydantic(path, error, prefix=where) from error
    except SpecError as error:
        raise FileFormatError(path, f"{where}.{error.field}", error.problem) from error
    return spec


def parse_ffn(data: Mapping[str, Any], path: Path | str | None, where: str) -> FfnSpec:
    """An FFN's spec from a table.

    Raises:
        FileFormatError: as `parse_operator`.
    """
    try:
        spec = TypeAdapter(FfnSpec).validate_json(json.dumps(dict(data), default=str))
    except ValidationError as error:
        raise from_pydantic(path, error, prefix=where) from error
    if spec.intermediate_size < 1:
        raise FileFormatError(path, f"{where}.intermediate_size", f"must be at least 1, got {spec.intermediate_size}")
    return spec


def operator_to_dict(spec: OperatorSpec) -> dict[str, Any]:
    """The operator as a table, `kind` first."""
    return {"kind": spec.kind, **asdict(spec)}


def block_from_dict(table: Mapping[str, Any], dims: ModelDims) -> BlockSpec:
    """The block that `block_to_dict` wrote."""
    return BlockSpec(operator=parse_operator(table["operator"], dims, None, "operator"), ffn=parse_ffn(table["ffn"], None, "ffn"))


def block_to_dict(block: BlockSpec) -> dict[str, Any]:
    return {"operator": operator_to_dict(block.operator), "ffn": asdict(block.ffn)}


def read_table(path: Path | str) -> dict[str, Any]:
    """A TOML or JSON file as a dictionary.

    Raises:
        FileFormatError: missing, unreadable, or not the format that its suffix says.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileFormatError(path, None, "no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(path, None, f"cannot be read: {error}") from error
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(path, None, f"is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(data, dict):
        raise FileFormatError(path, None, "must hold a table of settings")
    return data


def from_pydantic(path: Path | str | None, error: ValidationError, *, prefix: str = "") -> FileFormatError:
    """The most telling complaint of pydantic as one line of ours."""
    unknown = ("extra_forbidden", "unexpected_keyword_argument")
    complaints = error.errors()
    # An unknown key before what is missing: most often it is the missing one, misspelt.
    first = next((complaint for complaint in complaints if complaint["type"] in unknown), complaints[0])
    field_path = ".".join(str(part) for part in (prefix, *first["loc"]) if str(part))
    match first["type"]:
        case kind if kind in unknown:
            problem = "unknown key; check its spelling against docs/files.md"
        case "missing" | "missing_argument" | "missing_keyword_only_argument":
            problem = "missing"
        case "model_type" | "dict_type":
            problem = f"must be a table, got {_shortened(first['input'])}"
        case _:
            problem = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {_shortened(first['input'])}"
    return FileFormatError(path, field_path, problem)


def _shortened(value: Any, length: int = 80) -> str:
    shown = repr(value)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def _inline(table: Mapping[str, Any]) -> str:
    parts = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    return "{ " + ", ".join(parts) + " }"
