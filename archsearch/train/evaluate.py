"""Held-out loss, in bits for every byte of text, so that tokenizers and vocabularies can be compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from archsearch.data import TokenData, Tokenizer, TokenStream
from archsearch.train.events import HeldOut
from archsearch.train.parallel import ALONE, Team
from archsearch.train.parallel.team import collect, deal
from archsearch.train.settings import TrainPlan
from archsearch.train.trainer import autocast, documents_of
from operators.documents import Documents


@dataclass
class _Sums:
    nats: float = 0.0
    tokens: int = 0
    text_bytes: int = 0

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.text_bytes


class Scorer(Protocol):
    """A model, or a trainer's objective around one."""

    def eval(self) -> Any: ...

    def token_losses(self, ids_BT: Tensor, targets_BT: Tensor, documents: Documents | None = None, /) -> Tensor: ...


def evaluate(model: Scorer, data: TokenData, plan: TrainPlan, team: Team = ALONE) -> HeldOut:
    """Score the same held-out windows every time: `eval_tokens` in windows of `sequence`, spread evenly over the held-out text
    of each source; of several, each gets its share by weight, or by length where there are no weights.

    `bits_per_byte = sum(nats) / ln 2 / bytes`, over targets that stand for bytes: the end-of-document token is none, and is
    left out of both sums. Every window starts anew, so a token has half a window of context on average.

    Several processes share the micro-batches out among themselves; sums are taken in the order of the text all the same, so that
    for the same weights the result has the same bits, however many there are.
    """
    held = [part for part in data.parts if part.held_out_bytes]
    shares = [part.weight or 0.0 for part in held]
    if not sum(shares):
        shares = [float(len(part.held_out)) for part in held]
    model.eval()
    sums = {
        part.name: _score(model, part.held_out, data.tokenizer, plan, round(plan.eval_tokens * share / sum(shares)), team)
        for part, share in zip(held, shares, strict=True)
    }
    scored = sums.values()
    whole = _Sums(sum(s.nats for s in scored), sum(s.tokens for s in scored), sum(s.text_bytes for s in scored))
    return HeldOut(
        bits_per_byte=whole.bits_per_byte,
        nats_per_token=whole.nats / whole.tokens,
        tokens=whole.tokens,
        text_bytes=whole.text_bytes,
        sources={name: s.bits_per_byte for name, s in sums.items()} if len(sums) > 1 else {},
    )


def _score(model: Scorer, stream: TokenStream, tokenizer: Tokenizer, plan: TrainPlan, tokens: int, team: Team) -> _Sums:
    windows = _windows(len(stream), plan.sequence, tokens)
    groups = [windows[first : first + plan.micro_batch] for first in range(0, len(windows), plan.micro_batch)]
    mine = [_score_group(model, stream, tokenizer, plan, group) for group in deal(groups, team)]
    sums = _Sums()
    for group in collect(mine, len(groups), team):
        sums.nats += group.nats
        sums.tokens += group.tokens
        sums.text_bytes += group.text_bytes
    return sums


def _score_group(model: Scorer, stream: TokenStream, tokenizer: Tokenizer, plan: TrainPlan, windows: list[tuple[int, int]]) -> _Sums:
    ids_BT = np.stack([stream[start:stop] for start, stop in windows]).astype(np.int64)
    bytes_BT = tokenizer.token_bytes_V[ids_BT[:, 1:]]
    with torch.no_grad(), autocast(plan):
        targets = torch.from_numpy(ids_BT[:, 1:]).to(plan.device)
        inputs = torch.from_numpy(ids_BT[:, :-1]).to(plan.device)
        losses = model.token_losses(inputs, targets, documents_of(inputs, plan, tokenizer.end_of_document))
    scored_BT = bytes_BT > 0
    nats = float(losses.double().cpu().numpy()[scored_BT].sum())
    return _Sums(nats, int(scored_BT.sum()), int(bytes_BT.sum(dtype=np.int64)))


def _windows(stream: int, sequence: int, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of windows of `sequence + 1` tokens that share only their border; one short one if there is less text."""
    length = min(sequence, stream - 1)
    available = (stream - 1) // length
    count = min(max(1, tokens // length), available)
    starts = [i * available // count * length for i in range(count)]
    return [(start, start + length + 1) for start in starts]
