"""Texts that the trained model writes: what figures cannot show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from archsearch.data import TokenData
from archsearch.model import LanguageModel
from archsearch.train.events import Sample
from archsearch.train.settings import TrainPlan
from archsearch.train.trainer import threads

HELD_OUT_PROMPTS = 3
PROMPT_TOKENS = 48
TEMPERATURE = 0.8
TOP_K = 50


def write_samples(model: LanguageModel, data: TokenData, plan: TrainPlan) -> tuple[Sample, ...]:
    """Continue the beginnings of held-out documents, the plan's own prompts, and nothing at all; each greedily and sampled."""
    prompts: list[tuple[list[int], str | None]] = []
    long_enough = (d for d in data.corpus.held_out() if len(d.text) > 4 * (PROMPT_TOKENS + plan.sample_tokens))
    for document in islice(long_enough, HELD_OUT_PROMPTS):
        ids = data.tokenizer.encode(document.text)
        reference = ids[PROMPT_TOKENS : PROMPT_TOKENS + plan.sample_tokens]
        prompts.append((ids[:PROMPT_TOKENS], data.tokenizer.decode(reference)))
    prompts += [(data.tokenizer.encode(prompt), None) for prompt in (*plan.prompts, "")]
    model.eval()
    samples = []
    for number, (ids, reference_text) in enumerate(prompts):
        for temperature in (0.0, TEMPERATURE):
            with threads(1):  # a token at a time is too little to share, and on a busy machine threads wait for each other
                text = data.tokenizer.decode(_continue(model, data, plan, ids, temperature, seed=plan.seed + number))
            samples.append(Sample(prompt=data.tokenizer.decode(ids), text=text, reference=reference_text, temperature=temperature))
    return tuple(samples)


def _continue(model: LanguageModel, data: TokenData, plan: TrainPlan, ids: Sequence[int], temperature: float, seed: int) -> list[int]:
    end = data.tokenizer.end_of_document
    prompt_BT = torch.tensor([[end, *ids]], device=plan.device)
    generator = torch.Generator(device=plan.device).manual_seed(seed)
    new: list[int] = []
    for next_B in model.stream(prompt_BT, plan.sample_tokens, temperature=temperature, top_k=TOP_K, generator=generator):
        if int(next_B) == end or int(next_B) >= data.tokenizer.vocab_size:  # the spec may have more rows than there are tokens
            break
        new.append(int(next_B))
    return new
