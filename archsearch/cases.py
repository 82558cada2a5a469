"""What is measured: a chain of copies of a block, embedding and head alone, or a whole model; as ONNX files and device cases."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archsearch.spec import ArchSpec, block_to_dict
from archsearch.workload import Workload
from devices.plan import Case, Feed, StatePair
from operators.kinds import operator_for
from operators.specs import BlockSpec, ModelDims, Precision

if TYPE_CHECKING:
    import numpy as np

    from operators.graph import GraphInfo

GRAPH_VERSION = 4
"""Raised when the graphs that are written change, or how all of them are measured, so that old measurements are not taken for new ones.
1: first. 2: the caches of windows have slack. 3: int8 in groups of 128. 4: malloc is set (`devices.local.allocator`)."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to be measured: `blocks` is empty for embedding and head alone; `vocab_size` is None for a chain of blocks."""

    blocks: tuple[BlockSpec, ...]
    dims: ModelDims
    vocab_size: int | None = None
    tie_embeddings: bool = True
    label: str = ""

    @property
    def copies(self) -> int:
        return max(1, len(self.blocks)) if self.vocab_size is None else 1

    def to_dict(self) -> dict[str, Any]:
        """What makes the subject itself; equal for equal subjects."""
        if self.vocab_size is None and len(set(self.blocks)) == 1:
            what: dict[str, Any] = {"kind": "block", "block": block_to_dict(self.blocks[0]), "copies": len(self.blocks)}
        elif self.blocks:
            what = {"kind": "model", "blocks": [block_to_dict(block) for block in self.blocks]}
        else:
            what = {"kind": "head"}
        if self.vocab_size is not None:
            what |= {"vocab_size": self.vocab_size, "tie_embeddings": self.tie_embeddings}
        return what | {"dims": asdict(self.dims), "graph": GRAPH_VERSION}

    @property
    def subject_id(self) -> str:
        return digest(self.to_dict())


def block_subject(block: BlockSpec, dims: ModelDims, copies: int) -> Subject:
    """A chain of `copies` distinct copies of a block."""
    return Subject(blocks=(block,) * copies, dims=dims, label=block_label(block))


def head_subject(dims: ModelDims, vocab_size: int, tie_embeddings: bool) -> Subject:
    """Embedding, final norm and head without any layer."""
    return Subject(blocks=(), dims=dims, vocab_size=vocab_size, tie_embeddings=tie_embeddings, label="embedding+head")


def model_subject(spec: ArchSpec) -> Subject:
    """A whole model."""
    return Subject(blocks=spec.layers, dims=spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings, label=spec.name)


def block_label(block: BlockSpec) -> str:
    """ "conv3/768": operator and FFN width."""
    return f"{operator_for(block.operator).label(block.operator)}/{block.ffn.intermediate_size}"


def digest(data: Any) -> str:
    """Sixteen hex digits of SHA-256 over canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def measurement_key(
    subject_id: str, workload: Workload, *, fingerprint: str, runtime: str, purpose: str, conditions: Mapping[str, Any] | None = None
) -> str:
    """Content hash of a measurement: equal exactly when two results may stand for each other."""
    what = {"subject": subject_id, "workload": asdict(workload), "device": fingerprint, "runtime": runtime, "purpose": purpose}
    return hashlib.sha256(json.dumps(what | dict(conditions or {}), sort_keys=True).encode()).hexdigest()[:32]


def write_subject(
    subject: Subject,
    directory: Path,
    *,
    precision: Precision,
    max_context: int,
    weights: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Path:
    """The ONNX file of a subject, with random weights unless some are given, from the cache in `directory` where it is there already.

    A file is complete or not there: it is written in a folder of its own that is renamed.
    """
    from operators.graph import write_blocks, write_model

    drawn = seed if weights is None else weights_digest(weights)
    name = digest({"subject": subject.to_dict(), "precision": precision, "max_context": max_context, "weights": drawn})
    folder = directory / name
    path = folder / "model.onnx"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as temporary:
        target = Path(temporary) / "new" / "model.onnx"
        if subject.vocab_size is None:
            write_blocks(target, subject.blocks, subject.dims, precision=precision, max_context=max_context, weights=weights, seed=seed)
        else:
            write_model(
                target,
                subject.blocks,
                subject.dims,
                vocab_size=subject.vocab_size,
                tie_embeddings=subject.tie_embeddings,
                precision=precision,
                max_context=max_context,
                weights=weights,
                seed=seed,
            )
        if not folder.exists():
            os.replace(target.parent, folder)
    return path


def weights_digest(weights: Mapping[str, np.ndarray]) -> str:
    """Identity of given weights, by name and content."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].tobytes())
    return found.hexdigest()[:16]


def make_case(case_id: str, path: Path, info: GraphInfo, workload: Workload) -> Case:
    """A device's case for a workload of an ONNX file."""
    feeds = info.feeds(batch=workload.batch, tokens=workload.tokens, context=workload.context)
    return Case(
        case_id=case_id,
        model=path.resolve(),
        feeds=tuple(Feed(name=f.name, dtype=f.dtype, shape=f.shape, fill=f.fill, value=f.value, scale=f.scale, high=f.high) for f in feeds),
        states=tuple(StatePair(input=state.input, output=state.output, shared=state.shared) for state in info.states),
    )


def distinct(blocks: Sequence[BlockSpec]) -> tuple[BlockSpec, ...]:
    """Each block once, in order of first appearance."""
    return tuple(dict.fromkeys(blocks))
