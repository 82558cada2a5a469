"""Held-out loss, in bits for every byte of text, so that tokenizers and vocabularies can be compared."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from archsearch.data import TokenData
from archsearch.model import LanguageModel
from archsearch.train.events import HeldOut
from archsearch.train.settings import TrainPlan
from archsearch.train.trainer import autocast


def evaluate(model: LanguageModel, data: TokenData, plan: TrainPlan) -> HeldOut:
    """Score the same held-out windows every time: `eval_tokens` in windows of `sequence`, spread evenly over the held-out text.

    `bits_per_byte = sum(nats) / ln 2 / bytes`, over targets that stand for bytes: the end-of-document token is none, and is
    left out of both sums. Every window starts anew, so a token has half a window of context on average.
    """
    windows = _windows(len(data.held_out), plan.sequence, plan.eval_tokens)
    nats, tokens, text_bytes = 0.0, 0, 0
    model.eval()
    for first in range(0, len(windows), plan.micro_batch):
        ids_BT = np.stack([data.held_out[start:stop] for start, stop in windows[first : first + plan.micro_batch]]).astype(np.int64)
        bytes_BT = data.tokenizer.token_bytes_V[ids_BT[:, 1:]]
        with torch.inference_mode(), autocast(plan):
            targets = torch.from_numpy(ids_BT[:, 1:]).to(plan.device)
            logits_BTV, _ = model(torch.from_numpy(ids_BT[:, :-1]).to(plan.device))
            losses = F.cross_entropy(logits_BTV.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        scored_BT = bytes_BT > 0
        nats += float(losses.double().cpu().numpy()[scored_BT].sum())
        tokens += int(scored_BT.sum())
        text_bytes += int(bytes_BT.sum(dtype=np.int64))
    return HeldOut(bits_per_byte=nats / math.log(2) / text_bytes, nats_per_token=nats / tokens, tokens=tokens, text_bytes=text_bytes)


def _windows(stream: int, sequence: int, tokens: int) -> list[tuple[int, int]]:
    """(start, stop) of windows of `sequence + 1` tokens that share only their border; one short one if there is less text."""
    length = min(sequence, stream - 1)
    available = (stream - 1) // length
    count = min(max(1, tokens // length), available)
    starts = [i * available // count * length for i in range(count)]
    return [(start, start + length + 1) for start in starts]
