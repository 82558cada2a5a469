"""Training and repeated sampling together: the T² laws of Roberts et al., "Test-Time Scaling Makes Overtraining Compute-Optimal",
arXiv 2604.01411. Their fitted constants are nowhere stated, so they come from the user.

A query may cost C_inf FLOP, which buys k = C_inf / (2 N) samples of one token each: a smaller model may try more often. Two forms:

    loss       -log pass@k of a task:  L(N, D, k) = E + A / N^alpha + B / D^beta + G / k^gamma
    accuracy   pass@k of a task whose questions differ:  1 - B(a, b + k) / B(a, b)

where the second takes every question's chance of success from a Beta(a, b) distribution. a and b are given for this very model, or follow
from the loss without its sampling term: mean = a / (a + b) = sigmoid(m0 + m1 L), sample size = a + b = exp(n0 + n1 L).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.optimize import minimize_scalar
from scipy.special import betaln, expit

from archsearch.errors import FileFormatError, InputError
from archsearch.overtraining.laws import Counted, loss_of
from archsearch.spec import from_pydantic, read_table

Positive = Annotated[float, Field(gt=0)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]
MISSING = (
    "T² needs constants, which its paper (arXiv 2604.01411) does not state: fit them and give --t2 FILE; "
    "docs/overtraining.md shows such a file"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class PretrainingTerms(_Strict):
    """E, A, B, alpha, beta of L = E + A / N^alpha + B / D^beta, fitted to the task."""

    E: Annotated[float, Field(ge=0)]
    A: Positive
    B: Positive
    alpha: Positive
    beta: Positive


class SamplingTerms(_Strict):
    """G and gamma of G / k^gamma."""

    G: Positive
    gamma: Positive


class AccuracyTerms(_Strict):
    """The Beta distribution: `a` and `b` of this model, or `mean` and `sample_size` as lines in the loss."""

    a: Positive | None = None
    b: Positive | None = None
    mean: Pair | None = None
    sample_size: Pair | None = None

    @model_validator(mode="after")
    def _one_way(self) -> AccuracyTerms:
        direct, by_loss = (self.a, self.b), (self.mean, self.sample_size)
        if sorted((direct.count(None), by_loss.count(None))) != [0, 2]:
            raise ValueError("give a and b, or mean and sample_size, and not both")
        return self


class T2File(_Strict):
    """The constants of one task."""

    name: Annotated[str, Field(min_length=1)]
    source: str = "the user's"
    counted: Counted = "total"
    answer_tokens: Annotated[int, Field(ge=1)] = 1
    pretraining: PretrainingTerms
    sampling: SamplingTerms | None = None
    accuracy: AccuracyTerms | None = None

    @classmethod
    def read(cls, path: Path | str) -> T2File:
        """Read constants from TOML or JSON.

        Raises:
            FileFormatError: names the field that is unknown, missing or impossible.
        """
        try:
            found = cls.model_validate(read_table(path))
        except ValidationError as error:
            raise from_pydantic(path, error) from error
        if found.sampling is None and found.accuracy is None:
            raise FileFormatError(path, None, "needs [sampling] for the loss form or [accuracy] for the accuracy form")
        return found


@dataclass(frozen=True, slots=True)
class Sampled:
    """A size, its tokens, and how often it may try.

    Attributes:
        parameters: N; tokens: D; samples: k.
        value: the loss form's loss (smaller is better), or the accuracy form's pass@k.
    """

    parameters: float
    tokens: float
    samples: float
    value: float


def samples(constants: T2File, parameters: float, query_flops: float) -> float:
    """k = C_inf / (2 N), over the tokens of an answer.

    Raises:
        InputError: not even one sample can be paid for.
    """
    k = query_flops / (2 * parameters * constants.answer_tokens)
    if k < 1:
        least = 2 * parameters * constants.answer_tokens
        raise InputError(f"--query-flops {query_flops:.3g} buys {k:.2g} samples of this model; one costs {least:.3g} FLOP")
    return k


def pretraining_loss(constants: T2File, parameters: float, tokens: float) -> float:
    return loss_of(constants.pretraining, parameters, tokens)


def sampling_loss(constants: T2File, parameters: float, tokens: float, k: float) -> float:
    """The loss form; needs `[sampling]`."""
    assert constants.sampling is not None
    return float(pretraining_loss(constants, parameters, tokens) + constants.sampling.G / k**constants.sampling.gamma)


def accuracy(constants: T2File, parameters: float, tokens: float, k: float) -> float:
    """The accuracy form, pass@k; needs `[accuracy]`."""
    terms = constants.accuracy
    assert terms is not None
    if terms.a is not None and terms.b is not None:
        return pass_at(terms.a, terms.b, k)
    assert terms.mean is not None
    assert terms.sample_size is not None
    loss = pretraining_loss(constants, parameters, tokens)
    mean = float(expit(terms.mean[0] + terms.mean[1] * loss))
    size = math.exp(min(700.0, terms.sample_size[0] + terms.sample_size[1] * loss))
    return pass_at(mean * size, (1 - mean) * size, k)


def pass_at(a: float, b: float, k: float) -> float:
    """1 - B(a, b + k) / B(a, b): the chance that one of k tries succeeds, over questions whose own chance is Beta(a, b)."""
    if not a > 0 or not b > 0:
        return float(b == 0)  # a mean that is nought or one to the last digit
    return float(-np.expm1(betaln(a, b + k) - betaln(a, b)))


def best_loss(constants: T2File, training_flops: float, query_flops: float) -> Sampled:
    """The size that has the lowest loss for so much training and so much a query. The loss is convex in ln N: there is one."""

    def value(parameters: float, tokens: float, k: float) -> float:
        return sampling_loss(constants, parameters, tokens, k)

    return _best(constants, training_flops, query_flops, value, sign=1)


def best_accuracy(constants: T2File, training_flops: float, query_flops: float) -> Sampled | None:
    """The size with the highest pass@k; None where a and b are those of one model."""
    if constants.accuracy is None or constants.accuracy.mean is None:
        return None

    def value(parameters: float, tokens: float, k: float) -> float:
        return accuracy(constants, parameters, tokens, k)

    return _best(constants, training_flops, query_flops, value, sign=-1)


def _best(
    constants: T2File, training_flops: float, query_flops: float, value: Callable[[float, float, float], float], *, sign: int
) -> Sampled:
    """Over sizes from 1000 parameters to the one that can just answer once: the best of a grid, and then the best around it."""

    def at(log_size: float) -> Sampled:
        size = math.exp(log_size)
        tokens, k = training_flops / (6 * size), query_flops / (2 * size * constants.answer_tokens)
        return Sampled(size, tokens, k, value(size, tokens, k))

    low, high = math.log(1e3), math.log(query_flops / (2 * constants.answer_tokens))
    if high <= low:
        raise InputError(f"--query-flops {query_flops:.3g} is too little for any model to answer once")
    grid = np.linspace(low, high, 241)
    start = int(np.argmin([sign * at(x).value for x in grid]))
    ends = grid[max(0, start - 1)], grid[min(len(grid) - 1, start + 1)]
    found = minimize_scalar(lambda x: sign * at(x).value, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return min((at(float(found.x)), at(float(grid[start]))), key=lambda point: sign * point.value)
