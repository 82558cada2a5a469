"""Two more synthetic tasks, after MAD (arXiv 2403.17844): copying what matters out of what does not, and recall among noise."""

from __future__ import annotations

import torch
from torch import Tensor

from archsearch.quality.tasks import BLANK, COPIED, GAPS, MARK, NOISE, NOISY_PAIRS, NOISY_QUERIES, NOISY_TOKENS, NOISY_VOCAB, SYMBOLS


def selective_copy_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight symbols among blanks, a mark, then the symbols in their order, each to be foretold.

    Returns:
        Sequences [batch, COPY_TOKENS] and targets of the same shape, -100 where nothing is asked.
    """
    symbols = torch.randint(SYMBOLS, (batch, COPIED), generator=generator)
    places = torch.rand(batch, GAPS, generator=generator).argsort(1)[:, :COPIED].sort(1).values
    told = torch.full((batch, GAPS), BLANK).scatter(1, places, symbols)
    mark = torch.full((batch, 1), MARK)
    ids = torch.cat([told, mark, symbols], 1)
    targets = torch.full_like(ids, -100)
    targets[:, GAPS : GAPS + COPIED] = symbols
    return ids, targets


def noisy_recall_batch(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Recall, with tokens of a vocabulary of their own between the pairs, about one before every pair.

    Returns:
        Sequences [batch, NOISY_TOKENS] and targets: at every query the value that answers it, elsewhere -100.
    """
    keys = torch.rand(batch, SYMBOLS, generator=generator).argsort(1)[:, :NOISY_PAIRS]
    values = torch.randint(SYMBOLS, 2 * SYMBOLS, (batch, NOISY_PAIRS), generator=generator)
    asked = torch.randint(NOISY_PAIRS, (batch, NOISY_QUERIES), generator=generator)
    said_keys = torch.cat([keys, keys.gather(1, asked)], 1)
    said_values = torch.cat([values, values.gather(1, asked)], 1)
    pairs = said_keys.shape[1]
    ids = torch.randint(2 * SYMBOLS, NOISY_VOCAB, (batch, NOISY_TOKENS), generator=generator)
    # Which of the steps (a pair or a piece of noise) are pairs, in order; a pair takes two tokens.
    steps = pairs + NOISE
    chosen = torch.rand(batch, steps, generator=generator).argsort(1)[:, :pairs].sort(1).values
    starts = chosen + torch.arange(pairs)
    ids.scatter_(1, starts, said_keys)
    ids.scatter_(1, starts + 1, said_values)
    targets = torch.full_like(ids, -100)
    targets.scatter_(1, starts[:, NOISY_PAIRS:], said_values[:, NOISY_PAIRS:])
    return ids, targets
