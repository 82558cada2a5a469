"""T4: the layouts of a confirmation again, at larger widths and at the target's ratio of tokens to parameters; meant for a GPU.

What a 64-channel copy says in seconds need not hold for a wider model that sees its text for long. So the same layouts are scaled to
two widths or more and trained by the trainer itself (`archsearch.train`: on a GPU in bf16 where there is one), each from several seeds on
as many tokens as it has parameters (their mean over the layouts: equal for all), times a ratio. Only text: what cannot recall, smaller
trainings have told. Results are lines of RUN/scale.jsonl; a training that is cut off goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from archsearch.checkpoint import is_checkpoint
from archsearch.confirm import Contest, Role
from archsearch.errors import InputError
from archsearch.quality.proxy import HEAD_DIM, narrow
from archsearch.quality.ranking import paired, rank
from archsearch.quality.results import append_line
from archsearch.spec import ArchSpec
from archsearch.train import Finished, Started, Step, TrainSettings, train
from archsearch.train.settings import TOKENS_PER_PARAMETER, default_sequence
from operators.costs import model_parameters

SEQUENCE = 512
"""Tokens of a sequence at most; windows shrink with it as in the smaller tiers."""
VOCAB = 8192
"""Entries of the vocabulary at most: a large one would be most of a narrow copy's parameters. Bits a byte do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """
    Attributes:
        widths: hidden sizes that the layouts are scaled to, multiples of 64.
        ratio: training tokens a parameter; the target's own.
        data: as `archsearch.train` takes it; none for the standard library's sources.
        context: the context that the layouts are meant for; windows shrink against it (`archsearch.quality.narrow`).
    """

    widths: tuple[int, ...]
    ratio: float = TOKENS_PER_PARAMETER
    data: tuple[str, ...] = ()
    context: int = 4096

    def __post_init__(self) -> None:
        wrong = [width for width in self.widths if width < HEAD_DIM or width % HEAD_DIM]
        if wrong or not self.widths:
            raise InputError(
                f"--width {wrong[0] if wrong else ''}: a multiple of {HEAD_DIM} is needed, for example --width 256 --width 512"
            )
        if not 0 < self.ratio < float("inf"):
            raise InputError(f"--tokens-per-parameter {self.ratio:g}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """One training: a layout at a width, from a seed."""

    spec: ArchSpec
    copy: ArchSpec
    seed: int
    tokens: int
    sequence: int
    data: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.copy.spec_id}-{self.seed}-{self.tokens}-{self.sequence}" + "".join(f"-{source}" for source in self.data)


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """What a training came to: bits a byte on held-out text, and where it was done."""

    key: str
    bits_per_byte: float
    tokens: int
    parameters: int
    seconds: float
    device: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class ScaleEvent:
    """`done` of `total` trainings are known; the running one is at `step` of `steps`."""

    done: int
    total: int
    label: str
    step: int = 0
    steps: int = 0


def trainings(contest: Contest, settings: ScaleSettings) -> list[Scaled]:
    """The narrowest width first, a seed of all layouts before the next."""
    found = []
    for width in sorted(settings.widths):
        copies = {spec.spec_id: (spec, _copy(spec, width, settings)) for spec in contest.layouts}
        sizes = {key: _parameters(copy) for key, (_, copy) in copies.items()}
        sequence = _sequence(list(sizes.values()))
        tokens = round(settings.ratio * mean(sizes.values()))  # equal for all of a width
        for seed in contest.seeds:
            for spec, copy in copies.values():
                found.append(Scaled(spec=spec, copy=copy, seed=seed, tokens=tokens, sequence=sequence, data=settings.data))
    return found


def _copy(spec: ArchSpec, width: int, settings: ScaleSettings) -> ArchSpec:
    return narrow(spec, vocab_size=min(spec.vocab_size, VOCAB), tokens=SEQUENCE, context=settings.context, hidden=width)


def _parameters(spec: ArchSpec) -> int:
    return model_parameters(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)


def _sequence(sizes: Sequence[int]) -> int:
    return min(SEQUENCE, default_sequence(max(sizes)))


def run_scale(contest: Contest, settings: ScaleSettings, run_dir: Path) -> Iterator[ScaleEvent]:
    """Do what is not done yet, one training after the other: a GPU is busy with one, and a CPU's threads too.

    Raises:
        InputError: too little text.
        RunError: loss or gradient is no number, or the disk is full.
    """
    todo = trainings(contest, settings)
    known = read_results(run_dir)
    for done, training in enumerate(todo):
        label = f"width {training.copy.hidden_size}: {training.spec.pattern}, seed {training.seed}"
        if training.key not in known:
            for event in _train(training, run_dir):
                yield ScaleEvent(done=done, total=len(todo), label=label, step=event[0], steps=event[1])
        yield ScaleEvent(done=done + 1, total=len(todo), label=label)


def _train(training: Scaled, run_dir: Path) -> Iterator[tuple[int, int]]:
    out = run_dir / "scale" / f"{training.copy.hidden_size}-{training.copy.spec_id}-{training.seed}-{training.tokens}"
    settings = TrainSettings(tokens=training.tokens, sequence=training.sequence, seed=training.seed, evaluations=2, sample_tokens=0)
    plan, value, seconds = None, float("nan"), 0.0
    for event in train(training.copy, training.data, out, settings=settings, resume=is_checkpoint(out)):
        if isinstance(event, Started):
            plan = event.plan
        elif isinstance(event, Step) and plan is not None:
            yield event.step, plan.steps
        elif isinstance(event, Finished):
            value, seconds = event.after.bits_per_byte, event.seconds
    assert plan is not None
    result = ScaleResult(
        key=training.key,
        bits_per_byte=value,
        tokens=plan.steps * plan.tokens_per_step,
        parameters=plan.parameters,
        seconds=seconds,
        device=plan.device,
        dtype=plan.dtype,
    )
    append_line(run_dir / "scale.jsonl", asdict(result))
    shutil.rmtree(out)  # gigabytes, at the widths that this is for


def read_results(run_dir: Path) -> dict[str, ScaleResult]:
    """What is known, by key; a line torn by a kill is repeated."""
    path = run_dir / "scale.jsonl"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            result = ScaleResult(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[result.key] = result
    return found


def document_of(contest: Contest, settings: ScaleSettings, run_dir: Path, winner: str | None) -> dict[str, Any]:
    """What became of the order: standings of each width, how widths agree, and whether T3's winner is still ahead of random layouts.

    Args:
        winner: the spec id that T3 named.
    """
    known = read_results(run_dir)
    by_width: dict[int, dict[str, list[ScaleResult]]] = {}
    for training in trainings(contest, settings):
        by_width.setdefault(training.copy.hidden_size, {}).setdefault(training.spec.spec_id, []).append(known[training.key])
    widths = []
    for width, found in by_width.items():
        rows = [_row(contest.role(spec), spec, found[spec.spec_id]) for spec in contest.layouts]
        any_result = next(iter(found.values()))[0]
        tokens = any_result.tokens
        where = {"device": any_result.device, "dtype": any_result.dtype}
        rows.sort(key=lambda row: row["mean"])
        widths.append({"width": width, "tokens": tokens, **where, "standings": rows})
    holds, why = _verdict(contest, by_width, winner)
    return {
        "ratio": settings.ratio,
        "seeds": list(contest.seeds),
        "widths": widths,
        "agreement": _agreement(by_width),
        "holds": holds,
        "why": why,
    }


def _row(role: Role, spec: ArchSpec, results: Sequence[ScaleResult]) -> dict[str, Any]:
    values = [result.bits_per_byte for result in results]
    return {
        "spec_id": spec.spec_id,
        "pattern": spec.pattern,
        "from": role,
        "parameters": results[0].parameters,
        "text_bits_per_byte": values,
        "mean": mean(values),
        "seconds": round(sum(result.seconds for result in results), 1),
    }


def _agreement(by_width: dict[int, dict[str, list[ScaleResult]]]) -> list[dict[str, Any]]:
    """tau-b of every width's order with the next one's."""
    widths = sorted(by_width)
    found = []
    for narrower, wider in itertools.pairwise(widths):
        means = [[mean(r.bits_per_byte for r in results) for results in by_width[width].values()] for width in (narrower, wider)]
        if len(means[0]) > 1:
            found.append({"widths": [narrower, wider], **rank(*means).to_dict()})
    return found


def _verdict(contest: Contest, by_width: dict[int, dict[str, list[ScaleResult]]], winner: str | None) -> tuple[bool | None, str]:
    """Whether T3's winner beats every random layout at every width, by more than the 95 % interval of the differences."""
    if winner is None:
        return None, "the smaller trainings named no winner; these are the standings at scale"
    if len(contest.seeds) < 2:
        return None, "one seed confirms nothing; give --seeds 2 or more"
    for width, found in sorted(by_width.items()):
        own = [result.bits_per_byte for result in found[winner]]
        for control in contest.controls:
            other = [result.bits_per_byte for result in found[control.spec_id]]
            if paired(own, other).word != "better":
                return False, f"at width {width} it cannot be told from {control.pattern}, a random layout"
    return True, f"better than every random layout at widths {', '.join(map(str, sorted(by_width)))}, by more than the 95 % interval"
