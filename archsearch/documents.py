"""The JSON document that `predict` and `bench` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archsearch.spec import ArchSpec
from archsearch.workload import Workload
from operators.costs import model_parameters

if TYPE_CHECKING:
    from archsearch.estimate import Estimate


def document_head(spec: ArchSpec, device: str) -> dict[str, Any]:
    parameters = model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return {"name": spec.name, "spec_id": spec.spec_id, "device": device, "parameters": parameters}


def workload_fields(workload: Workload) -> dict[str, Any]:
    names = ("phase", "tokens", "context", "batch", "precision", "threads")
    return {name: getattr(workload, name) for name in names}


def predicted_fields(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"predicted_ms": None, "low_ms": None, "high_ms": None, "extrapolated": None}
    interval = {"low_ms": estimate.low, "high_ms": estimate.high}
    return {"predicted_ms": estimate.value, **interval, "extrapolated": estimate.extrapolated}
