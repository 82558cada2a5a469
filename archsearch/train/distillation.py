"""Learning from a teacher's top-k tokens: the tempered, decoupled loss that LFM2's report names (arXiv 2511.23404).

Of the teacher's distribution p only its k most likely tokens S are kept, with their probabilities, and the mass of all others.
Comparing that with the student's q by the chain rule of the Kullback-Leibler divergence gives two terms:

    KL(Bernoulli(p(S)) || Bernoulli(q(S)))  +  p(S) * KL(p(. | S) || q(. | S))

The first says how much mass belongs to S at all, the second how it lies within. Only the second is tempered (both sides to the
power 1/temperature, times temperature^2, Hinton et al., arXiv 1503.02531): tempering p over the whole vocabulary would need logits
that were not kept, and renormalising over S alone would teach nothing about the mass outside. At temperature 1 the sum is the
divergence between p and q with all tokens outside of S taken as one.

Shapes: N tokens, C tokens of a chunk, D hidden size, V vocabulary, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn import functional as F

from archsearch.cross_entropy import CHUNK

NO_MASS = -80.0
"""Log-probability below which fp32 cannot tell a mass from none; keeps 0 * -inf out of the sums."""


@dataclass(frozen=True)
class TopK:
    """What is kept of a teacher's distributions.

    Attributes:
        ids_NK: int64, its most likely tokens.
        log_p_NK: fp32, their log-probabilities under its whole vocabulary.
        log_rest_N: fp32, the log of all others' mass.
    """

    ids_NK: Tensor
    log_p_NK: Tensor
    log_rest_N: Tensor

    @classmethod
    def of(cls, logits_NV: Tensor, k: int) -> TopK:
        """
        Raises:
            ValueError: k is not below the vocabulary, so that no token is left outside.
        """
        if not 0 < k < logits_NV.shape[-1]:
            raise ValueError(f"k must be above 0 and below the vocabulary of {logits_NV.shape[-1]}, got {k}")
        logits_NV = logits_NV.float()
        total_N1 = logits_NV.logsumexp(-1, keepdim=True)
        top_NK, ids_NK = logits_NV.topk(k, dim=-1)
        rest_N = logits_NV.scatter(-1, ids_NK, float("-inf")).logsumexp(-1)
        return cls(ids_NK, top_NK - total_N1, (rest_N - total_N1[..., 0]).clamp(min=NO_MASS))

    def chunk(self, where: slice) -> TopK:
        return TopK(self.ids_NK[where], self.log_p_NK[where], self.log_rest_N[where])


def divergence(logits_NV: Tensor, teacher: TopK, temperature: float) -> Tensor:
    """The loss above for each token in nats, [N]."""
    logits_NV = logits_NV.float()
    top_NK = logits_NV.gather(-1, teacher.ids_NK)
    log_total_N = logits_NV.logsumexp(-1)
    log_q_in_N = top_NK.logsumexp(-1) - log_total_N
    log_q_rest_N = logits_NV.scatter(-1, teacher.ids_NK, float("-inf")).logsumexp(-1) - log_total_N
    log_p_in_N = teacher.log_p_NK.logsumexp(-1)
    p_in_N = log_p_in_N.exp()
    decision_N = p_in_N * (log_p_in_N - log_q_in_N) + teacher.log_rest_N.exp() * (teacher.log_rest_N - log_q_rest_N)
    log_p_NK = (teacher.log_p_NK / temperature).log_softmax(-1)
    log_q_NK = (top_NK / temperature).log_softmax(-1)
    within_N = (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(-1)
    return decision_N + p_in_N * temperature**2 * within_N


def linear_distillation(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, teacher: TopK, *, temperature: float, weight: float
) -> tuple[Tensor, Tensor]:
    """(loss to be learnt from, cross-entropy alone), means in nats a token; the loss is `(1 - weight) * cross-entropy + weight *
    divergence`. Logits exist for a chunk of tokens at a time and are computed again in the backward pass.
    """
    loss, cross_entropy = x_ND.new_zeros((), dtype=torch.float32), x_ND.new_zeros((), dtype=torch.float32)
    for first in range(0, len(x_ND), CHUNK):
        where = slice(first, first + CHUNK)
        arguments = (x_ND[where], weight_VD, targets_N[where], teacher.chunk(where), temperature, weight)
        part, part_of_cross_entropy = torch.utils.checkpoint.checkpoint(_chunk, *arguments, use_reentrant=False)
        loss, cross_entropy = loss + part, cross_entropy + part_of_cross_entropy
    return loss / len(x_ND), cross_entropy.detach() / len(x_ND)


def _chunk(x_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, teacher: TopK, temperature: float, weight: float) -> tuple[Tensor, Tensor]:
    logits_CV = F.linear(x_CD, weight_VD).float()
    cross_entropy = F.cross_entropy(logits_CV, targets_C, reduction="sum")
    return (1 - weight) * cross_entropy + weight * divergence(logits_CV, teacher, temperature).sum(), cross_entropy
