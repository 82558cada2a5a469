"""Whether an exported model computes what the trained one does, token by token, and what its precision costs.

Legend: T positions of the whole sequence, N positions compared, V vocabulary.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.errors import CheckpointError, InputError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from operators.builtin import SLACK
from operators.costs import group_size, model_weights
from operators.quantize import dequantized
from operators.specs import Precision, SwaSpec

Weights = Mapping[str, npt.NDArray[np.float32]]
Logits = npt.NDArray[np.float32]

FP32_TOLERANCE = 1e-4
"""Relative RMS error of logits from rounding alone: 2e-7 to 5e-6 was seen, in up to 16 layers."""
ROUNDING_MARGIN = 1.5
"""How much more than our estimate of activation rounding is accepted: 0.96 to 1.08 times was seen on x86."""
PROMPT, DECODE = 64, 64
"""Tokens of prefill and of decode; more prefill where a sliding window must be filled."""
QUALITY_TOKENS = 512
"""Most held-out tokens that the exported model reads one by one."""
SAMPLE = "def mean(values):\n    return sum(values) / len(values)  # naïve, 42 × 3\n\n\n<|endoftext|>"
"""Text on which the tokenizer of an export and ours must agree: code, blanks, digits, accents, and a special token spelt out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """What a runtime rounds on purpose, so that parity is asked of the rest.

    Attributes:
        description: what was done to the weights, "rounded to int4".
        weights: as the runtime computes with them.
        products: names of the weights whose inputs are rounded as well; the head's always are.
        inputs: ways in which the runtime may round those inputs; the one that costs most sets the tolerance.
    """

    description: str
    weights: Weights
    products: frozenset[str]
    inputs: tuple[Callable[[Tensor], Tensor], ...]


class Decoder(Protocol):
    """A runtime with an exported model."""

    def start(self, positions: int) -> None:
        """Empty caches, with room for `positions`."""

    def step(self, ids: Sequence[int]) -> Logits:
        """Read more tokens; logits [V] after the last of them, up to a constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityCost:
    """What an export lost against the trained weights in fp32, over the same tokens.

    Attributes:
        text: what was read: "held-out text", or the "greedy continuation" of a random prompt, on which KL and agreement
            say something about the rounding but nothing about text.
        kl_nats: mean Kullback-Leibler divergence of the exported model's next-token distribution from the trained one's.
        top1_agreement: share of positions whose most likely token is the same.
        bits_per_byte, bits_per_byte_fp32: of the exported and of the trained model on held-out text; else None.
    """

    text: Literal["held-out text", "greedy continuation"]
    tokens: int
    mean_logit_difference: float
    max_logit_difference: float
    kl_nats: float
    top1_agreement: float
    bits_per_byte: float | None
    bits_per_byte_fp32: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """An export beside torch, over a prefill and one decode step after the other.

    Attributes:
        path: the folder of the export.
        reference: the weights that torch computed with.
        relative_error: RMS difference of the logits over the RMS of torch's logits (each position's mean taken off).
        tolerance: the largest relative error that is accepted.
        activation_rounding: the relative error that torch itself shows when the inputs of its products are rounded as the
            runtime's are: to int8 for quantised weights, to f16 for those. None in fp32.
        greedy_agreement: share of positions where both would choose the same next token.
        quality: None where parity does not hold.
    """

    path: Path
    format: Literal["onnx", "hf", "gguf"]
    precision: str
    reference: str
    prompt_tokens: int
    decoded_tokens: int
    relative_error: float
    tolerance: float
    activation_rounding: float | None
    max_logit_error: float
    greedy_agreement: float
    quality: QualityCost | None

    @property
    def holds(self) -> bool:
        return self.relative_error <= self.tolerance  # False for NaN

    def at(self, path: Path) -> ParityReport:
        """The same report after the export was moved."""
        return replace(self, path=path)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        return (
            f"logits differ from torch by {self.relative_error:.2g} (RMS, relative; at most {self.tolerance:.2g} accepted) "
            f"over {self.prompt_tokens} + {self.decoded_tokens} tokens"
        )


def measure_parity(
    decoder: Decoder,
    spec: ArchSpec,
    weights: Weights,
    *,
    format: Literal["onnx", "hf", "gguf"],
    precision: str,
    path: Path,
    max_context: int,
    rounding: Rounding | None = None,
    held_out: Sequence[int] | None = None,
    token_bytes_V: npt.NDArray[np.integer[Any]] | None = None,
    seed: int = 0,
) -> ParityReport:
    """Run an export and torch over the same tokens.

    Where weights are rounded, torch computes with the rounded ones, so that what is left is the runtime's rounding of
    activations; `quality` holds the distance from the weights as they were trained.

    Args:
        weights: as trained, in fp32.
        rounding: None for a runtime that computes in fp32 throughout.
        held_out: tokens that the model was not trained on; by default a random prompt and what torch continues it with.
        token_bytes_V: bytes of text behind each token, for bits per byte.

    Raises:
        InputError: `max_context` has no room for the check, or `held_out` holds ids beyond the vocabulary.
        CheckpointError: the weights are not those of the spec.
    """
    trained = build(spec, weights)
    prompt, decode = probe_lengths(spec, max_context)
    ids = _probe_tokens(trained, spec, held_out, prompt, decode, seed)
    exported_NV = decode_logits(decoder, ids, prompt)
    reference, cost = trained, None
    if rounding is not None:
        reference = build(spec, rounding.weights)
    expected_NV = torch_logits(reference, ids, prompt - 1)
    if rounding is not None:
        rounded = (torch_logits(reference, ids, prompt - 1, rounding=(rounding.products, inputs)) for inputs in rounding.inputs)
        cost = max(relative_error(logits_NV, expected_NV) for logits_NV in rounded)
    report = ParityReport(
        path=path,
        format=format,
        precision=precision,
        reference="the trained weights" + (f" {rounding.description}" if rounding else ""),
        prompt_tokens=prompt,
        decoded_tokens=decode,
        relative_error=relative_error(exported_NV, expected_NV),
        tolerance=FP32_TOLERANCE if cost is None else FP32_TOLERANCE + ROUNDING_MARGIN * cost,
        activation_rounding=cost,
        max_logit_error=float(np.abs(centred(exported_NV) - centred(expected_NV)).max()),
        greedy_agreement=float(np.mean(exported_NV.argmax(-1) == expected_NV.argmax(-1))),
        quality=None,
    )
    if not report.holds:
        return report
    return replace(report, quality=_quality(decoder, trained, ids, prompt, exported_NV, held_out, token_bytes_V, max_context))


def blockwise(spec: ArchSpec, weights: Weights, precision: Precision) -> Rounding | None:
    """How our ONNX graphs round: linear weights in blocks, and the inputs of their products to int8. None in fp32."""
    if precision == "fp32":
        return None
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return Rounding(
        description=f"rounded to {precision}",
        weights=dequantized(weights, names, precision),
        products=frozenset(weight.name for weight in names if weight.linear),
        inputs=roundings_of_inputs(precision),
    )


def build(spec: ArchSpec, weights: Weights) -> LanguageModel:
    """The torch model with these weights, ready to be evaluated.

    Raises:
        CheckpointError: a weight is missing, unknown or of another shape.
    """
    model = LanguageModel(spec)
    try:
        model.load_weights(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights are not those of {spec.name}: {' '.join(str(error).split())[:300]}") from error
    return model.eval().requires_grad_(False)


def probe_lengths(spec: ArchSpec, max_context: int) -> tuple[int, int]:
    """(prefill, decode) that fill every window, so that all of decode evicts, and the buffer of a window is moved on the way.

    Raises:
        InputError: `max_context` is too small for even the shortest check.
    """
    windows = [block.operator.window for block in spec.layers if isinstance(block.operator, SwaSpec)]
    prompt = min(max([PROMPT, *(window + max(8, window // SLACK - 8) for window in windows)]), max_context - DECODE)
    if prompt < 1:
        raise InputError(f"max_context: {max_context} positions have no room for the {DECODE + 1} tokens that an export is checked with")
    return prompt, DECODE


def decode_logits(decoder: Decoder, ids: Sequence[int], prompt: int) -> Logits:
    """Logits [N, V] after the prompt and after each token that follows it, one step a token."""
    decoder.start(len(ids))
    rows = [decoder.step(ids[:prompt]), *(decoder.step(ids[t : t + 1]) for t in range(prompt, len(ids)))]
    return np.stack(rows)


@torch.inference_mode()
def torch_logits(
    model: LanguageModel,
    ids: Sequence[int],
    first: int,
    *,
    rounding: tuple[AbstractSet[str], Callable[[Tensor], Tensor]] | None = None,
) -> Logits:
    """Logits [N, V] of the positions from `first` on, from one pass over the whole sequence.

    `rounding` = (names of weights, function) applies the function to the inputs of those products, and of the head.
    """
    ids_1T = torch.tensor([list(ids)])
    if rounding is None:
        return F.linear(model.hidden(ids_1T)[0][0, first:], model.head_weight_VD).numpy()
    names, rounded = rounding

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded(inputs[0]), *inputs[1:])

    products = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and f"{name}.weight" in names]
    handles = [module.register_forward_pre_hook(hook) for module in products]
    try:
        hidden_ND = model.hidden(ids_1T)[0][0, first:]
    finally:
        for handle in handles:
            handle.remove()
    return F.linear(rounded(hidden_ND), model.head_weight_VD).numpy()


def round_to_int8(x: Tensor, granularity: int | None) -> Tensor:
    """Round to 255 levels symmetric around zero, with one scale for each `granularity` channels (None: for all of them)."""
    channels = x.shape[-1]
    size = granularity or channels
    padded = F.pad(x, (0, -channels % size))
    blocked = padded.reshape(*x.shape[:-1], -1, size)
    scale = blocked.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, 1, scale)
    return ((blocked / scale).round() * scale).flatten(-2)[..., :channels]


def roundings_of_inputs(precision: Precision) -> tuple[Callable[[Tensor], Tensor], ...]:
    """What this machine's kernels may do to the inputs of products with weights in blocks.

    On x86 the channels of a block share a scale, which was seen. Elsewhere (KleidiAI on ARM) those of a whole row may, which costs
    up to 2.4 times as much.
    """

    def by_blocks(x: Tensor) -> Tensor:
        return round_to_int8(x, group_size(precision, x.shape[-1]))

    by_rows = partial(round_to_int8, granularity=None)
    return (by_blocks,) if platform.machine().lower() in ("x86_64", "amd64") else (by_blocks, by_rows)


def relative_error(found_NV: Logits, expected_NV: Logits) -> float:
    """RMS of the difference over RMS of what was expected, both centred; NaN where anything is not finite."""
    found, expected = centred(found_NV), centred(expected_NV)
    scale = math.sqrt(np.mean(expected**2))
    error = math.sqrt(np.mean((found - expected) ** 2)) if np.isfinite(found).all() else math.nan
    return error / scale if scale else error


def centred(logits_NV: Logits) -> npt.NDArray[np.float64]:
    """Each position's mean taken off: a constant added to all logits changes no probability, and some runtimes report
    log-probabilities."""
    logits = logits_NV.astype(np.float64)
    return np.asarray(logits - logits.mean(-1, keepdims=True))


def _probe_tokens(model: LanguageModel, spec: ArchSpec, held_out: Sequence[int] | None, prompt: int, decode: int, seed: int) -> list[int]:
    if held_out is not None:
        held_out = [int(id) for id in held_out]
        if held_out and not 0 <= min(held_out) <= max(held_out) < spec.vocab_size:
            raise InputError(f"held_out: token ids must be 0 to {spec.vocab_size - 1}; was another tokenizer used?")
        if len(held_out) >= prompt + decode:
            return held_out[: prompt + decode]
    ids = np.random.default_rng(seed).integers(0, spec.vocab_size, prompt).tolist()
    return [int(id) for id in model.generate(torch.tensor([ids]), decode)[0]]


def _quality(
    decoder: Decoder,
    trained: LanguageModel,
    ids: Sequence[int],
    prompt: int,
    exported_NV: Logits,
    held_out: Sequence[int] | None,
    token_bytes_V: npt.NDArray[np.integer[Any]] | None,
    max_context: int,
) -> QualityCost:
    on_text = held_out is not None and len(held_out) > 1
    if on_text:
        ids = [int(id) for id in held_out[: min(QUALITY_TOKENS, max_context)]]  # type: ignore[index]
        prompt = 1
        exported_NV = decode_logits(decoder, ids, prompt)
    trained_NV = torch_logits(trained, ids, prompt - 1)
    sums = _Sums()
    targets = [*ids[prompt:], None]
    for exported_V, trained_V, target in zip(exported_NV, trained_NV, targets, strict=True):
        sums.add(exported_V, trained_V, target)
    size = int(token_bytes_V[np.array(ids[prompt:])].sum()) if on_text and token_bytes_V is not None else 0
    n = len(exported_NV)
    return QualityCost(
        text="held-out text" if on_text else "greedy continuation",
        tokens=n,
        mean_logit_difference=sums.difference / n,
        max_logit_difference=sums.largest,
        kl_nats=sums.kl / n,
        top1_agreement=sums.agree / n,
        bits_per_byte=sums.nats / math.log(2) / size if size else None,
        bits_per_byte_fp32=sums.nats_trained / math.log(2) / size if size else None,
    )


class _Sums:
    """Sums over positions, so that no second array of [N, V] in float64 is needed."""

    def __init__(self) -> None:
        self.difference = self.largest = self.kl = self.nats = self.nats_trained = 0.0
        self.agree = 0

    def add(self, exported_V: Logits, trained_V: Logits, target: int | None) -> None:
        difference = np.abs(centred(exported_V) - centred(trained_V))
        self.difference += float(difference.mean())
        self.largest = max(self.largest, float(difference.max()))
        self.agree += int(exported_V.argmax() == trained_V.argmax())
        log_p, log_q = _log_softmax(trained_V), _log_softmax(exported_V)
        self.kl += float(np.exp(log_p) @ (log_p - log_q))
        if target is not None:
            self.nats -= float(log_q[target])
            self.nats_trained -= float(log_p[target])


def _log_softmax(logits_V: Logits) -> npt.NDArray[np.float64]:
    shifted = logits_V.astype(np.float64) - logits_V.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
