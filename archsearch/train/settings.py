"""What may be asked of a training (`TrainSettings`), and what is done (`TrainPlan`): every choice made, and kept with the checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from archsearch.errors import CheckpointError, InputError

Schedule = Literal["cosine", "wsd"]
Dtype = Literal["fp32", "bf16"]
OptimizerName = Literal["adamw", "muon"]
Products = Literal["blas", "onednn"]
Kind = Literal["ddp", "fsdp"]
"""ddp: every process holds the whole model. fsdp: each holds a part of every matrix and of its moments."""

TOKENS_PER_PARAMETER = 20
"""Default budget, the ratio of Hoffmann et al. (arXiv 2203.15556), unless the text runs out before."""
MICRO_BATCH_TOKENS = 1024
"""Tokens that go through the model at once: on CPUs more are no faster, and need more memory."""
MIN_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """None leaves the choice to `make_plan`."""

    tokens: int | None = None
    """Training tokens in all, rounded up to whole steps."""
    max_seconds: float | None = None
    """Wall-clock budget; the tokens that fit are estimated at the start, and cut where the machine turns out slower. Not together
    with `tokens`."""
    sequence: int | None = None
    """Tokens of a training sequence."""
    batch: int | None = None
    """Sequences of an update."""
    micro_batch: int | None = None
    """Sequences that go through the model at once; gradients add up over the batch."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    schedule: Schedule = "wsd"
    seed: int = 0
    """Of the initial weights and the order of the data."""
    isolate_documents: bool = False
    """Whether documents that are packed into one sequence see nothing of each other."""
    optimizer: OptimizerName = "adamw"
    """`muon` is for the hidden matrices only; embedding, norms, biases and convolutions stay with AdamW."""
    dtype: Dtype | None = None
    """Of matrix products; by default bf16 where the processor has instructions for it."""
    products: Products | None = None
    """The library that multiplies fp32 matrices on a CPU; by default the faster one for the processor. Another changes the last
    bits: name one for the same weights on several machines."""
    compile: bool = False
    """Compile the layers with torch.compile: a wait at the start, faster updates after it."""
    teacher: str | None = None
    """A causal language model of transformers to learn from beside the text: a folder, or a name on the hub."""
    teacher_weight: float = 0.5
    """Share of the loss that is the divergence from the teacher; the rest is the cross-entropy of the text."""
    teacher_top_k: int = 32
    """Tokens of the teacher's distribution that are kept; the others count as one."""
    teacher_temperature: float = 1.0
    """Above 1, unlikely tokens among the kept ones count for more."""
    cache_teacher: bool = False
    """Keep what the teacher says on disk, for a resume or another training on the same batches. A resume may change it."""
    max_spike: float = 3.0
    """Nats that a loss may lie above the median of the last updates before the training stops; 0 for no limit. A resume may change it."""
    threads: int | None = None
    """CPU threads; by default the cores that this process may use. They decide the order of sums, and so the last bits."""
    parallel: Literal["auto"] | Kind = "auto"
    """How processes that torchrun started share the model out: all of it in each (ddp), or a part (fsdp). A resume may change it."""
    eval_tokens: int | None = None
    """Held-out tokens of an evaluation."""
    evaluations: int = 8
    """How often the held-out loss is taken, the first time before and the last time after the training."""
    save_every_seconds: float = 60.0
    """Longest time between two checkpoints."""
    sample_tokens: int = 80
    """Tokens of a text sample at the end; 0 for no samples."""
    prompts: tuple[str, ...] = ()
    """Prompts of samples, beside those from held-out documents."""

    def __post_init__(self) -> None:
        if self.tokens is not None and self.max_seconds is not None:
            raise InputError("tokens and max_seconds exclude each other: the time decides how many tokens there are")
        for name in ("tokens", "max_seconds", "sequence", "batch", "micro_batch", "learning_rate", "threads", "eval_tokens"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name}: must be above 0, got {value}")
        if self.evaluations < 2:
            raise InputError(f"evaluations: must be at least 2 (before and after), got {self.evaluations}")
        if not 0 < self.teacher_weight <= 1 or not 0 < self.teacher_temperature < math.inf or self.teacher_top_k < 1:
            raise InputError(
                "teacher: teacher_weight must be above 0 and at most 1, teacher_temperature above 0, teacher_top_k at least 1; got "
                f"{self.teacher_weight:g}, {self.teacher_temperature:g} and {self.teacher_top_k}"
            )
        for name in ("sample_tokens", "save_every_seconds", "seed", "max_spike"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: must not be negative, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "wsd"):
            raise InputError(f"schedule: must be cosine or wsd, got {self.schedule!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"optimizer: must be adamw or muon, got {self.optimizer!r}")
        if self.dtype not in (None, "fp32", "bf16"):
            raise InputError(f"dtype: must be fp32 or bf16, got {self.dtype!r}")
        if self.products not in (None, "blas", "onednn"):
            raise InputError(f"products: must be blas or onednn, got {self.products!r}")
        if self.parallel not in ("auto", "ddp", "fsdp"):
            raise InputError(f"parallel: must be auto, ddp or fsdp, got {self.parallel!r}")
        if self.compile and self.isolate_documents:
            raise InputError("compile: does not go together with isolate_documents, whose shapes change with every batch; leave one out")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainPlan:
    """All that decides the outcome. Equal plans give equal weights (same machine, same versions)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    spec_id: str
    parameters: int
    data_fingerprint: str
    sources: tuple[str, ...]
    text_field: str
    seed: int
    sequence: int
    batch: int
    micro_batch: int
    steps: int
    learning_rate: float
    schedule: Schedule
    warmup_steps: int
    decay_steps: int
    final_lr_share: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    grad_clip: float = 1.0
    eval_tokens: int
    eval_steps: tuple[int, ...]
    sample_tokens: int
    prompts: tuple[str, ...]
    threads: int
    isolate_documents: bool = False
    optimizer: OptimizerName = "adamw"
    compile: bool = False
    teacher: str | None = None
    teacher_fingerprint: str | None = None
    teacher_weight: float = 0.5
    teacher_top_k: int = 32
    teacher_temperature: float = 1.0
    device: str = "cpu"
    dtype: Dtype = "fp32"
    products: Products = "blas"
    """The library that multiplies fp32 matrices: it decides the order of sums, and so the last bits."""
    max_seconds: float | None = None
    """The time budget that `steps` was made from, if there was one."""
    measured_tokens_per_s: float | None = None
    """What `steps` was estimated with, if there was a time budget."""
    cuts: tuple[tuple[int, int], ...] = ()
    """(step, steps in all from then on), for every time that a slow machine made a time budget allow fewer steps."""

    @property
    def last_step(self) -> int:
        """Updates in all: `steps`, unless it was cut."""
        return self.cuts[-1][1] if self.cuts else self.steps

    @property
    def tokens(self) -> int:
        """Training tokens in all."""
        return self.last_step * self.tokens_per_step

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence

    def scheduled(self, step: int) -> float:
        """Where a step lies in the schedule as it was first planned: after a cut, what was left of it passes faster."""
        at, position, last = 0, 0.0, self.steps
        for cut, new_last in self.cuts:
            if step <= cut:
                break
            position += (cut - at) * (self.steps - position) / (last - at)
            at, last = cut, new_last
        return position + (step - at) * (self.steps - position) / (last - at)

    def cut(self, step: int, last_step: int) -> TrainPlan:
        """The plan with fewer steps from `step` on; evaluations still to come move closer."""
        shrunk = (last_step - step) / (self.last_step - step)
        evaluations = {s if s <= step else round(step + (s - step) * shrunk) for s in self.eval_steps}
        return replace(self, cuts=(*self.cuts, (step, last_step)), eval_steps=tuple(sorted(evaluations)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object, where: str) -> TrainPlan:
        """
        Raises:
            CheckpointError: not a plan of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(json.dumps(data))  # strict, but JSON's lists may become tuples
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; train again into another --out") from error


def default_sequence(parameters: int) -> int:
    """Longer for larger models, whose loss still gains from more context (and which have the machine for it)."""
    for most, sequence in ((30e6, 256), (100e6, 512), (300e6, 1024)):
        if parameters < most:
            return sequence
    return 2048


def default_learning_rate(hidden_size: int) -> float:
    """Peak learning rate of AdamW: `6e-4 * 768 / hidden_size`, at most 3e-3.

    The anchor is GPT-3's 125M model (arXiv 2005.14165, table 2.1: 6e-4 at width 768), and 1/width is how Adam's
    learning rate of hidden matrices transfers (Tensor Programs V, arXiv 2203.03466), which that table follows within
    a factor of 1.5 up to width 2048. The cap is what tiny models (width 64) were found to train well with.
    """
    return min(6e-4 * 768 / hidden_size, 3e-3)


def default_batch(tokens: int, sequence: int) -> int:
    """Sequences of an update: the Step Law's `0.58 * tokens^0.571` tokens (arXiv 2503.04715), at least one micro-batch."""
    wanted = max(0.58 * math.pow(tokens, 0.571), MICRO_BATCH_TOKENS)
    return max(1, round(wanted / sequence))


def plan_steps(tokens: int, tokens_per_step: int) -> int:
    return max(1, math.ceil(tokens / tokens_per_step))


def evaluation_steps(steps: int, evaluations: int) -> tuple[int, ...]:
    """Steps after which the held-out loss is taken: 0, the last, and evenly between."""
    return tuple(sorted({round(i * steps / (evaluations - 1)) for i in range(evaluations)}))
