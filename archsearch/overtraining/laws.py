"""Loss as a function of size and tokens, L = E + A / N^alpha + B / D^beta, and what it recommends for training alone.

N counts parameters, D training tokens, losses are nats a token, and compute is C = 6 N D, the rule by which both fits were made. On an
optimum of C the two terms are in a fixed proportion, alpha A / N^alpha = beta B / D^beta (Hoffmann et al., arXiv 2203.15556, eq. 4),
from which everything here follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np

from archsearch.errors import InputError

Counted = Literal["total", "non-embedding"]
DRAWS = 1000
CONFIDENCE = 0.90


class Terms(Protocol):
    """The constants of a fit, published or the user's."""

    @property
    def E(self) -> float: ...
    @property
    def A(self) -> float: ...
    @property
    def B(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def beta(self) -> float: ...


def loss_of(terms: Terms, parameters: float, tokens: float) -> float:
    """E + A / N^alpha + B / D^beta."""
    return float(terms.E + terms.A / parameters**terms.alpha + terms.B / tokens**terms.beta)


@dataclass(frozen=True, slots=True)
class Allocation:
    """A size and the tokens it is trained on."""

    parameters: float
    tokens: float
    loss: float
    """Nats a token."""

    @property
    def flops(self) -> float:
        """Of training, 6 N D."""
        return 6 * self.parameters * self.tokens

    def total_flops(self, inference_tokens: float) -> float:
        """Of training and inference, 6 N D + 2 N D_inference (Sardana et al., arXiv 2401.00448, eq. 2)."""
        return self.flops + 2 * self.parameters * inference_tokens


@dataclass(frozen=True, slots=True)
class FittedRange:
    """What the trained models of a fit covered, smallest and largest; beyond it a law is extrapolated."""

    parameters: tuple[float, float]
    tokens: tuple[float, float]
    ratio: tuple[float, float]
    """Tokens a parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingLaw:
    """A published fit.

    Attributes:
        source: the paper, and which of its numbers these are.
        counted: which parameters the fit counted.
        covariance: of (ln A, ln B, ln E, alpha, beta); None where none is known that can be believed.
    """

    name: str
    source: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    counted: Counted
    fitted: FittedRange
    covariance: tuple[tuple[float, ...], ...] | None = None

    def loss(self, parameters: float, tokens: float) -> float:
        return loss_of(self, parameters, tokens)

    def optimal_tokens(self, parameters: float) -> float:
        """The tokens at which no other size reaches as low a loss with the same compute."""
        size_term = self.A / parameters**self.alpha
        return float((self.beta * self.B / (self.alpha * size_term)) ** (1 / self.beta))

    def optimum(self, flops: float) -> Allocation:
        """The lowest loss that C = 6 N D allows."""
        both = self.alpha + self.beta
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / both)
        parameters = scale * (flops / 6) ** (self.beta / both)
        tokens = flops / (6 * parameters)
        return Allocation(parameters, tokens, self.loss(parameters, tokens))

    def cheapest(self, loss: float) -> Allocation:
        """The least training compute that reaches a loss above E."""
        size_term = (loss - self.E) * self.beta / (self.alpha + self.beta)
        return self.allocation(size_term, loss)

    def allocation(self, size_term: float, loss: float) -> Allocation:
        """The model of this loss whose share of it that is due to its size, A / N^alpha, is this."""
        parameters = (self.A / size_term) ** (1 / self.alpha)
        return Allocation(parameters, (self.B / (loss - self.E - size_term)) ** (1 / self.beta), loss)

    def pull(self, parameters: float, tokens: float) -> float:
        """alpha A / N^alpha over beta B / D^beta: 1 where compute-optimal, above 1 for what is overtrained."""
        return float((self.alpha * self.A / parameters**self.alpha) / (self.beta * self.B / tokens**self.beta))

    def drawn(self) -> tuple[ScalingLaw, ...]:
        """Laws as they might have been fitted to other trainings of the same kind; none without a covariance."""
        return _drawn(self)

    def interval(self, of: Callable[[ScalingLaw], float]) -> tuple[float, float] | None:
        """The 90 % interval of something that the law says, from what its trainings leave open; None without a covariance.

        It knows of the fit's uncertainty alone: not of the law's form, nor of other data, architectures or tokenizers.
        """
        values = [of(law) for law in self.drawn()]
        if not values:
            return None
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="nearest")  # of infinities too
        return float(low), float(high)


@lru_cache(maxsize=8)
def _drawn(law: ScalingLaw) -> tuple[ScalingLaw, ...]:
    if law.covariance is None:
        return ()
    centre = [math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta]
    rows = np.random.default_rng(0).multivariate_normal(centre, law.covariance, size=DRAWS)
    return tuple(
        replace(law, A=math.exp(a), B=math.exp(b), E=math.exp(e), alpha=float(alpha), beta=float(beta), covariance=None)
        for a, b, e, alpha, beta in rows
    )


SEEN = FittedRange(parameters=(57.3e6, 16.2e9), tokens=(0.819e9, 318e9), ratio=(0.456, 341.0))
"""Of the 240 points that Besiroglu et al. read off Hoffmann et al.'s figure 4 and fitted: `benchmarks/chinchilla_fit.py` prints them."""
STATED = FittedRange(parameters=(70e6, 16e9), tokens=(5e9, 500e9), ratio=SEEN.ratio)
"""Hoffmann et al.'s own words for N and D; they give no list of D/N, so that of the points in their figure stands for it."""

BESIROGLU = ScalingLaw(
    name="besiroglu",
    source="Besiroglu et al. 2024, arXiv 2404.10102, table 1",
    E=1.8172,
    A=482.01,
    B=2085.43,
    alpha=0.3478,
    beta=0.3658,
    counted="total",
    fitted=SEEN,
    covariance=(
        (6.388735e-02, -2.635406e-02, 2.050899e-03, 3.809295e-03, -1.321985e-03),
        (-2.635406e-02, 1.793110e-01, 3.747492e-03, -1.639418e-03, 8.771136e-03),
        (2.050899e-03, 3.747492e-03, 1.994785e-04, 1.210482e-04, 1.826340e-04),
        (3.809295e-03, -1.639418e-03, 1.210482e-04, 2.274383e-04, -8.228935e-05),
        (-1.321985e-03, 8.771136e-03, 1.826340e-04, -8.228935e-05, 4.293221e-04),
    ),
)
"""The covariance is bootstrapped from the paper's points by `benchmarks/chinchilla_fit.py` (4000 bootstraps); its paper gives standard
errors alone, which leave out that A and alpha, and B and beta, move together."""

HOFFMANN = ScalingLaw(
    name="hoffmann",
    source="Hoffmann et al. 2022, arXiv 2203.15556, eq. 10 (approach 3), as printed",
    E=1.69,
    A=406.4,
    B=410.7,
    alpha=0.34,
    beta=0.28,
    counted="total",
    fitted=STATED,
)
HOFFMANN_TEX = replace(
    HOFFMANN,
    name="hoffmann-tex",
    source="Hoffmann et al. 2022, the unrounded numbers of the paper's TeX source, as given by Besiroglu et al.'s analysis",
    E=math.exp(0.5267228),
    A=math.exp(6.0073404),
    B=math.exp(6.0179186),
    alpha=0.33917084,
    beta=0.2849083,
)
SARDANA = replace(
    HOFFMANN,
    name="sardana",
    source="Sardana et al. 2024, arXiv 2401.00448: Hoffmann's numbers with exponents of three digits",
    alpha=0.336,
    beta=0.283,
)
LAWS = {law.name: law for law in (BESIROGLU, HOFFMANN, HOFFMANN_TEX, SARDANA)}
DEFAULT_LAWS = ("besiroglu", "hoffmann")


def law_named(name: str) -> ScalingLaw:
    """A published fit by its name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in LAWS:
        raise InputError(f"no scaling law {name!r}; known: {', '.join(LAWS)}")
    return LAWS[name]
