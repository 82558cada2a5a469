"""Training and inference together: Sardana et al., "Beyond Chinchilla-Optimal", arXiv 2401.00448.

A model of N parameters that is trained on D tokens and then reads and writes T tokens costs 6 N D + 2 N T FLOP in its lifetime. Among all
models of one loss, the cheapest is where that sum's derivative along the curve of equal loss is nought. With `law.pull` (alpha A / N^alpha
over beta B / D^beta) the derivative is nought where

    T = 3 D (pull - 1)

which grows along the curve, so that each T has one answer. T = 0 gives Chinchilla's optimum back.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq

from archsearch.overtraining.laws import Allocation, ScalingLaw


def right_for(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """The inference tokens T for which no other model of this loss is cheaper over its lifetime; below nought for an undertrained model,
    which no T makes the best."""
    return 3 * tokens * (law.pull(parameters, tokens) - 1)


def break_even(law: ScalingLaw, parameters: float, tokens: float) -> float:
    """The inference tokens from which on this model is cheaper over its lifetime than the compute-optimal one of the same loss.

    Infinite where it never is: an undertrained model is larger than that one, and was no cheaper to train. 0 for the optimum itself.
    """
    own = Allocation(parameters, tokens, law.loss(parameters, tokens))
    other = law.cheapest(own.loss)
    more = own.flops - other.flops
    saved = 2 * (other.parameters - parameters)
    if abs(saved) <= 1e-9 * parameters:
        return 0.0
    return max(0.0, more / saved) if saved > 0 else math.inf


def lifetime_optimum(law: ScalingLaw, loss: float, inference_tokens: float) -> Allocation:
    """The model of this loss (above the law's E) that costs the fewest FLOP in training and `inference_tokens` of inference."""

    def at(ratio: float) -> Allocation:
        """On the curve of equal loss, by ln of size's term over data's term: to the right models are smaller and trained longer."""
        return law.allocation((loss - law.E) / (1 + math.exp(-ratio)), loss)

    def lacking(ratio: float) -> float:
        return 3 * at(ratio).tokens * (law.alpha / law.beta * math.exp(ratio) - 1) - inference_tokens

    left = math.log(law.beta / law.alpha)
    if inference_tokens <= 0:
        return law.cheapest(loss)
    right = left + 1
    while lacking(right) < 0:
        right += 1
    return at(brentq(lacking, left, right, xtol=1e-12))


def tokens_for(law: ScalingLaw, parameters: float, inference_tokens: float) -> float:
    """The training tokens D after which a model of this size is the cheapest of its loss over a lifetime of `inference_tokens`.

    More inference asks for more training: short of it, a smaller model that is trained longer would be cheaper; beyond it, a larger one.
    """
    left = math.log(law.optimal_tokens(parameters))
    if inference_tokens <= 0:
        return math.exp(left)

    def lacking(log_tokens: float) -> float:
        return right_for(law, parameters, math.exp(log_tokens)) - inference_tokens

    right = left + 1
    while lacking(right) < 0:
        right += 1
    return math.exp(brentq(lacking, left, right, xtol=1e-12))
