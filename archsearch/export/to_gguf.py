"""From a checkpoint to one GGUF file for llama.cpp.

llama.cpp has no architecture of ours, so a layout is written as one that it has and that computes the same: `lfm2` where there are
convolutions, `qwen3` where all layers are full attention. What neither can say is refused field by field.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from archsearch.checkpoint import Checkpoint
from archsearch.data.tokenizer import Tokenizer
from archsearch.errors import InputError, NoCounterpartError, ParityError
from archsearch.export import MAX_CONTEXT
from archsearch.export.gguf_tokenizer import plain_token, tokenizer_reasons, write_tokenizer
from archsearch.export.llama import LlamaDecoder, require_llama
from archsearch.export.place import place
from archsearch.hf import different_values, to_hf_name
from archsearch.parity import (
    DECODE,
    FP32_TOLERANCE,
    ROUNDING_MARGIN,
    SAMPLE,
    ParityReport,
    Rounding,
    Weights,
    build,
    measure_parity,
    round_to_int8,
    torch_logits,
)
from archsearch.spec import ArchSpec
from operators.costs import model_weights
from operators.specs import GqaSpec, ShortConvSpec, SwaSpec

GgufPrecision = Literal["f32", "f16", "q8_0", "q4_0"]
GGUF_BLOCK = 32
"""Weights that share a scale in Q8_0 and Q4_0."""
PRECISIONS: tuple[GgufPrecision, ...] = ("f32", "f16", "q8_0", "q4_0")
MODEL = "model-{precision}.gguf"
USAGE = """\
`{model}` holds weights and tokenizer for llama.cpp as architecture {architecture}: `llama-cli -m {model} -p "Once upon a time"`,
or `xllamacpp` and `llama-cpp-python` in Python.

"""


def export_gguf(
    checkpoint: Path | str,
    out: Path | str,
    precision: GgufPrecision = "q4_0",
    *,
    max_context: int = MAX_CONTEXT,
    held_out: Sequence[int] | None = None,
) -> ParityReport:
    """A GGUF file with the tokenizer in it, linear weights and embedding in `precision`, everything else in fp32.

    Args:
        max_context: the context length that the file names; llama.cpp makes its cache so large where nobody says otherwise.
        held_out: as in `export_onnx`.

    Raises:
        NoCounterpartError: llama.cpp has no architecture that computes this; names every field that stands in the way.
        RunError: gguf or xllamacpp is not installed; unchecked conversions go wrong in silence, so none is made.
        CheckpointError, InputError, ParityError: as `export_onnx`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is none of GGUF's {', '.join(PRECISIONS)}")
    require_llama()
    source = Checkpoint.open(checkpoint)
    spec, tokenizer = source.spec, source.tokenizer()
    layout = gguf_layout(spec, precision, tokenizer)
    weights = source.weights()
    model = MODEL.format(precision=precision)

    def fill(folder: Path) -> ParityReport:
        write_gguf(folder / model, spec, weights, precision, tokenizer, max_context)
        rounded = as_stored(spec, weights, precision)
        with LlamaDecoder(folder / model, spec.vocab_size, plain_token(tokenizer)) as decoder:
            report = measure_parity(
                decoder,
                spec,
                weights,
                format="gguf",
                precision=precision,
                path=folder,
                max_context=max_context,
                rounding=_rounding(spec, rounded, precision),
                held_out=held_out,
                token_bytes_V=tokenizer.token_bytes_V,
            )
            if report.holds:
                check_tokenizer(decoder, tokenizer)
                check_generate(decoder, spec, rounded, report, np.flatnonzero(tokenizer.token_bytes_V == 0))
        return report

    return place(source, Path(out), fill, USAGE.format(model=model, architecture=layout.architecture))


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A spec as llama.cpp sees it.

    Attributes:
        heads, head_dim: 0 where no layer attends.
        kv_heads: of each layer, 0 for a convolution.
        window: 0 where every attention layer sees everything.
    """

    architecture: Literal["lfm2", "qwen3"]
    intermediate_size: int
    heads: int
    kv_heads: tuple[int, ...]
    head_dim: int
    kernel_size: int
    window: int


def gguf_layout(spec: ArchSpec, precision: GgufPrecision = "f16", tokenizer: Tokenizer | None = None) -> Layout:
    """What llama.cpp is told of a spec.

    Raises:
        NoCounterpartError: it has no architecture that computes this, or the precision no room for a matrix.
    """
    operators = [block.operator for block in spec.layers]
    known = (ShortConvSpec, GqaSpec, SwaSpec)
    reasons = [
        (f"layers.{i}.operator.kind", f"llama.cpp has no {operator.kind} beside convolution and attention")
        for i, operator in enumerate(operators)
        if not isinstance(operator, known)
    ]
    attention = [(i, operator) for i, operator in enumerate(operators) if isinstance(operator, GqaSpec | SwaSpec)]
    architecture: Literal["lfm2", "qwen3"] = "lfm2" if any(isinstance(op, ShortConvSpec) for op in operators) else "qwen3"
    for field in ("kernel_size", "heads", "head_dim"):
        reasons += different_values(spec, field, "operator", "llama.cpp has one for all layers")
    reasons += different_values(spec, "intermediate_size", "ffn", "llama.cpp has one for all layers")
    if architecture == "qwen3":
        reasons += different_values(spec, "kv_heads", "operator", "llama.cpp's qwen3 has one for all layers")
        reasons += [
            (f"layers.{i}.operator.kind", "without a convolution llama.cpp has no architecture with windows that is otherwise ours")
            for i, operator in attention
            if isinstance(operator, SwaSpec)
        ]
    elif not attention:
        reasons.append(("layers", "llama.cpp's lfm2 ends with an assertion where no layer attends"))
    else:
        windowed = [isinstance(operator, SwaSpec) for _, operator in attention]
        reasons += different_values(spec, "window", "operator", "llama.cpp has one for all layers")
        if any(windowed):
            reasons += [
                (f"layers.{i}.operator.kind", "llama.cpp's lfm2 has windows in all attention layers or in none")
                for (i, _), window in zip(attention, windowed, strict=True)
                if not window
            ]
        reasons += [
            (f"layers.{i}.operator.head_dim", f"{op.heads} heads x {op.head_dim} is not the hidden size, as llama.cpp's lfm2 wants it")
            for i, op in attention
            if op.heads * op.head_dim != spec.hidden_size
        ]
    if precision in ("q8_0", "q4_0"):
        sizes = {"hidden_size": spec.hidden_size}
        sizes |= {f"layers.{i}.ffn.intermediate_size": block.ffn.intermediate_size for i, block in enumerate(spec.layers)}
        sizes |= {f"layers.{i}.operator.heads": op.heads * op.head_dim for i, op in attention}
        reasons += [
            (field, f"{size} channels are no whole blocks of {GGUF_BLOCK}, as {precision} stores them; --precision f16 takes them")
            for field, size in sizes.items()
            if size % GGUF_BLOCK
        ]
    reasons += tokenizer_reasons(tokenizer) if tokenizer else []
    if reasons:
        raise NoCounterpartError(f"{spec.name} has no counterpart in llama.cpp", reasons, "`--to onnx` and `--to hf` take any spec")
    first = attention[0][1] if attention else None
    return Layout(
        architecture=architecture,
        intermediate_size=spec.layers[0].ffn.intermediate_size,
        heads=first.heads if first else 0,
        kv_heads=tuple(getattr(operator, "kv_heads", 0) for operator in operators),
        head_dim=first.head_dim if first else 0,
        kernel_size=next((op.kernel_size for op in operators if isinstance(op, ShortConvSpec)), 0),
        window=first.window if isinstance(first, SwaSpec) else 0,
    )


def write_gguf(
    path: Path, spec: ArchSpec, weights: Weights, precision: GgufPrecision, tokenizer: Tokenizer | None, max_context: int
) -> None:
    """The file, unchecked.

    Args:
        tokenizer: None for a file that only takes token ids.

    Raises:
        NoCounterpartError: as `gguf_layout`.
        OSError: the disk is full.
    """
    import gguf

    layout = gguf_layout(spec, precision, tokenizer)
    writer = gguf.GGUFWriter(path, layout.architecture)
    writer.add_name(spec.name)
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(max_context)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(layout.intermediate_size)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope_theta)
    if layout.heads:
        writer.add_head_count(layout.heads)
        writer.add_key_length(layout.head_dim)
        writer.add_value_length(layout.head_dim)
        writer.add_rope_dimension_count(layout.head_dim)
    if layout.architecture == "lfm2":
        writer.add_head_count_kv(list(layout.kv_heads))
        writer.add_shortconv_l_cache(layout.kernel_size)
    else:
        writer.add_head_count_kv(layout.kv_heads[0])
    if layout.window:
        writer.add_sliding_window(layout.window)
    kind = gguf.GGMLQuantizationType[precision.upper()]
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if precision == "f32" else f"MOSTLY_{precision.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        write_tokenizer(writer, tokenizer, spec.vocab_size)
    architecture = gguf.MODEL_ARCH.LFM2 if layout.architecture == "lfm2" else gguf.MODEL_ARCH.QWEN3
    names = gguf.get_tensor_name_map(architecture, len(spec.layers))
    for weight in model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings):
        stored = kind if weight.linear else gguf.GGMLQuantizationType.F32
        value = np.ascontiguousarray(np.asarray(weights[weight.name], np.float32).squeeze())
        writer.add_tensor(_tensor_name(names, weight.name, spec, layout), gguf.quants.quantize(value, stored), raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is None:  # numpy on a full disk: "27648 requested and 3232 written"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    finally:
        writer.close()


def as_stored(spec: ArchSpec, weights: Weights, precision: GgufPrecision) -> Weights:
    """The weights as llama.cpp computes with them: linear ones rounded to `precision`, others as they are."""
    import gguf

    if precision == "f32":
        return weights
    kind = gguf.GGMLQuantizationType[precision.upper()]
    rounded = dict(weights)
    for weight in model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings):
        if weight.linear:
            data = gguf.quants.quantize(np.ascontiguousarray(weights[weight.name]), kind)
            rounded[weight.name] = gguf.quants.dequantize(data, kind).astype(np.float32)
    return rounded


def _tensor_name(names: Any, name: str, spec: ArchSpec, layout: Layout) -> str:
    theirs = to_hf_name(name, spec, "lfm2")
    if layout.architecture == "qwen3":
        for ours, other in QWEN3_RENAMES.items():
            theirs = theirs.replace(ours, other)
    found = names.get_name(theirs, try_suffixes=(".weight",))
    if found is None:
        raise ParityError(f"gguf has no name for {theirs}, so nothing was written; was its table of names changed?")
    return str(found)


QWEN3_RENAMES = {
    "operator_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "q_layernorm": "q_norm",
    "k_layernorm": "k_norm",
    "out_proj": "o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "model.embedding_norm": "model.norm",
}


def _rounding(spec: ArchSpec, rounded: Weights, precision: GgufPrecision) -> Rounding | None:
    """llama.cpp rounds the inputs of products to what their weights are: f16, or int8 in blocks of 32 for both quantised types."""
    if precision == "f32":
        return None
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return Rounding(
        description=f"rounded to {precision}",
        weights=rounded,
        products=frozenset(weight.name for weight in names if weight.linear),
        inputs=(_to_f16 if precision == "f16" else partial(round_to_int8, granularity=GGUF_BLOCK),),
    )


def _to_f16(x: Tensor) -> Tensor:
    return x.half().float()


def check_tokenizer(decoder: LlamaDecoder, tokenizer: Tokenizer) -> None:
    """
    Raises:
        ParityError: llama.cpp splits the sample otherwise.
    """
    if (found := decoder.tokenize(SAMPLE)) != tokenizer.encode(SAMPLE):
        raise ParityError(f"llama.cpp's tokenizer gives other tokens than the trained one, so nothing was written: {found[:8]}...")


def check_generate(decoder: LlamaDecoder, spec: ArchSpec, rounded: Weights, report: ParityReport, special: npt.NDArray[Any]) -> None:
    """What llama.cpp generates on its own must be what torch finds likeliest on the same text, but for ties: a difference in
    logits of at most e turns round two tokens whose logits differ by at most 2e.

    Args:
        special: ids of special tokens. Those that end a text are never chosen here, so that there is a whole text to compare.

    Raises:
        ParityError: another token, further behind than that.
    """
    length = report.prompt_tokens  # fills the windows, so that every step evicts
    prompt = torch.randint(spec.vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    decoder.start(length + DECODE, evict=True)
    found = decoder.generate(prompt, DECODE)
    logits_NV = torch_logits(build(spec, rounded), [*prompt, *found], length - 1)[:-1]
    chosen_N = logits_NV[np.arange(len(found)), found]
    logits_NV[:, special] = -np.inf
    behind_N = logits_NV.max(-1) - chosen_N
    wrong = np.flatnonzero(behind_N > 2 * ROUNDING_MARGIN * report.max_logit_error + FP32_TOLERANCE)
    if len(found) != DECODE or len(wrong):
        at = int(wrong[0]) if len(wrong) else len(found)
        raise ParityError(f"llama.cpp generates other tokens than {spec.name} from token {at} on, so nothing was written")
