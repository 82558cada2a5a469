"""From a checkpoint to one ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np

from archsearch.checkpoint import Checkpoint
from archsearch.errors import InputError, ParityError
from archsearch.export import MAX_CONTEXT
from archsearch.export.genai import check_genai, genai_is_installed, genai_reasons, write_genai
from archsearch.export.place import place
from archsearch.parity import Decoder, Logits, ParityReport, Weights, blockwise, measure_parity
from archsearch.spec import ArchSpec
from operators.graph import Runner, write_model
from operators.specs import PRECISIONS, Precision

MODEL = "model.onnx"

USAGE = """\
`{model}` is one graph in {precision}: embedding, {layers} layers and head, for prefill and decode, up to {max_context} positions.

- inputs: `input_ids` [batch, tokens]; `attention_mask` [batch, context + tokens] where there is attention; the caches `past_*`
- outputs: `logits` [batch, 1, vocabulary] of the last position; the caches `present_*`
- key/value caches are updated in place: bind each `present.*` to the buffer of its `past_key_values.*`
- ONNX Runtime 1.32 or newer runs it (it has operators of the domain com.microsoft)

Measure it: `archsearch bench {model} --device local`
"""
GENAI = """
For onnxruntime-genai the folder is complete: `onnxruntime_genai.Model("DIR")`. It can be loaded there {checked}.
"""
WITHOUT_GENAI = """
onnxruntime-genai cannot run this layout ({reason}).
"""


def export_onnx(
    checkpoint: Path | str,
    out: Path | str,
    precision: Precision = "int4",
    *,
    max_context: int = MAX_CONTEXT,
    held_out: Sequence[int] | None = None,
) -> ParityReport:
    """One ONNX graph for prefill and decode, with embedding, all layers, final norm, head, and caches as inputs and outputs.

    Args:
        out: the folder to be made; an older export in it is replaced.
        held_out: tokens the model was not trained on, to tell what the precision costs in bits per byte.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete or damaged.
        InputError: an unknown precision, a context too small to be checked, or a folder that holds something else.
        ParityError: the graph computes something else than the model; nothing is left behind.
        RunError: the disk is full or the place cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    source = Checkpoint.open(checkpoint)
    spec, weights, tokenizer = source.spec, source.weights(), source.tokenizer()
    reasons = genai_reasons(spec)

    def fill(folder: Path) -> ParityReport:
        write_onnx(folder / MODEL, spec, weights, precision, max_context)
        decoder = OnnxDecoder(folder / MODEL)
        report = measure_parity(
            decoder,
            spec,
            weights,
            format="onnx",
            precision=precision,
            path=folder,
            max_context=max_context,
            rounding=blockwise(spec, weights, precision),
            held_out=held_out,
            token_bytes_V=tokenizer.token_bytes_V,
        )
        if report.holds and not reasons:
            write_genai(folder, spec, tokenizer, MODEL, max_context)
            if genai_is_installed():
                check_genai(folder, decoder, spec, tokenizer, report.prompt_tokens, report.decoded_tokens)
        return report

    usage = USAGE.format(model=MODEL, layers=len(spec.layers), precision=precision, max_context=max_context)
    if reasons:
        usage += WITHOUT_GENAI.format(reason=": ".join(reasons[0]))
    else:
        usage += GENAI.format(checked="and was, with logits compared" if genai_is_installed() else "was not, for it is not installed here")
    return place(source, Path(out), fill, usage)


def write_onnx(path: Path, spec: ArchSpec, weights: Weights, precision: Precision, max_context: int) -> None:
    """The whole model as ONNX, unchecked."""
    write_model(
        path,
        spec.layers,
        spec.dims,
        vocab_size=spec.vocab_size,
        tie_embeddings=spec.tie_embeddings,
        precision=precision,
        max_context=max_context,
        weights=weights,
    )


class OnnxDecoder(Decoder):
    """An exported graph in ONNX Runtime.

    Raises:
        ParityError: the runtime does not load or run it.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with self._reporting():
            self.runner = Runner(path)

    def start(self, positions: int) -> None:
        self.runner.start(batch=1, capacity=positions)

    def step(self, ids: Sequence[int]) -> Logits:
        with self._reporting():
            return cast(Logits, self.runner.step(np.array([list(ids)]))[0, -1])

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # The runtime's errors have no base of their own, only this module.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ParityError(f"{self.name}: ONNX Runtime cannot run it, so nothing was written: {reason}") from error
