"""What training a spec really costs: FLOP by arithmetic over its operators, and hours on an accelerator.

Laws speak of 6 N D. Arithmetic differs from it in three ways: the lookup in the embedding multiplies nothing, while a head does, tied or
not; attention, scans and convolutions work beside the weights, attention the more the longer the sequence; norms' weights are not
multiplied as matrices are. For a tied model with short sequences the two nearly agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from archsearch.errors import InputError
from archsearch.spec import ArchSpec
from operators.costs import block_costs

DEFAULT_MFU = 0.40
"""Share of the peak that is reached. Llama 3's trainings reached 0.38 to 0.43 on H100 (Grattafiori et al., arXiv 2407.21783, table 4);
models as small as those of this toolkit often reach less, since their matrices are small."""
DEFAULT_SEQUENCE = 2048
BACKWARD = 2
"""FLOP of the backward pass over those of the forward pass (Kaplan et al., arXiv 2001.08361; Hoffmann et al., appendix F)."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """Something that trains. `source` is where its peak is stated."""

    name: str
    peak_tflops: float
    """Dense bf16 with sums in fp32, without structured sparsity, 10^12 FLOP a second."""
    source: str


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator("a100", 312.0, "NVIDIA A100 data sheet, SXM"),
        Accelerator("h100", 989.4, "NVIDIA H100 data sheet, SXM (half of the 1,979 stated with sparsity)"),
        Accelerator("h200", 989.4, "NVIDIA H200 data sheet, SXM (half of the 1,979 stated with sparsity)"),
        Accelerator("b200", 2250.0, "NVIDIA HGX B200 data sheet (half of the 4,500 stated with sparsity)"),
        Accelerator("mi300x", 1307.4, "AMD Instinct MI300X data sheet"),
        Accelerator("tpu-v5e", 197.0, "Google Cloud TPU v5e documentation, a chip"),
        Accelerator("tpu-v6e", 918.0, "Google Cloud TPU v6e documentation, a chip"),
    )
}
DEFAULT_ACCELERATOR = "h100"


def accelerator_named(name: str) -> Accelerator:
    """One of the known accelerators.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ACCELERATORS:
        raise InputError(f"no accelerator {name!r}; known: {', '.join(ACCELERATORS)}; for others give --peak-tflops")
    return ACCELERATORS[name]


def training_flops_per_token(spec: ArchSpec, sequence: int) -> float:
    """FLOP a token of forward and backward, in sequences of so many tokens; a multiply-add is two, causal attention sees what it may."""
    layers = sum(number * block_costs(block, spec.dims).flops(tokens=sequence, context=0) for block, number in spec.block_counts().items())
    head = 2 * spec.vocab_size * spec.hidden_size
    return (1 + BACKWARD) * (layers / sequence + head)


def hours(flops: float, accelerator: Accelerator, mfu: float) -> float:
    """Hours of one accelerator."""
    return flops / (accelerator.peak_tflops * 1e12 * mfu) / 3600
