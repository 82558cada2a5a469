"""Training tokens a second, beside transformers' `Lfm2ForCausalLM` with the same config, weights, data and precision.

    python benchmarks/train_throughput.py [--precision fp32 bf16] [--batch 4 --sequence 256 --updates 12] [--variants archsearch ...]

Every variant is a process of its own, for how memory is kept holds for a whole process. They take turns, one update each, in shuffled
order; whoever waits does nothing. Two updates are not counted. Before anything is timed, all must agree on loss and gradient norm.

    archsearch              the trainer as `archsearch train` runs it
    archsearch, plain       without `operators.functions`, and fp32 products by BLAS: what these two bring
    archsearch, compiled    with --compile
    transformers            loss = model(input_ids, labels=labels), sdpa attention, autocast for bf16, fused AdamW, clipping at norm 1
    transformers, kept      the same with our `keep_freed_memory`
    transformers, as ours   with that and, in fp32, the library for products that ours takes: what is left is the difference of the models
    transformers, compiled  the same as the first with torch.compile

`--mixer swa` or `gla` puts that operator in place of the convolutions; transformers has no such model.

The peak is the best product of 1024^2 or 2048^2 matrices in that precision, timed in between. FLOPs a token are three times those of the
forward pass (the backward pass multiplies twice): every matrix, the tied head counted once, and each operator's own arithmetic.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import random
import statistics
import time
from contextlib import nullcontext
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from archsearch.hf import to_hf_config, to_hf_name
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train.allocator import keep_freed_memory
from archsearch.train.processor import default_products
from archsearch.train.products import use_products
from archsearch.train.settings import Products, TrainPlan
from archsearch.train.trainer import Trainer
from operators import functions
from operators.costs import block_costs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OURS = ("archsearch", "archsearch, plain", "archsearch, compiled")
THEIRS = ("transformers", "transformers, kept", "transformers, as ours", "transformers, compiled")
VARIANTS = OURS + THEIRS
LIBRARIES: tuple[Products, ...] = ("blas", "onednn")
WARM_UP = 2
OPTIMIZER = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}


def spec_of(options: argparse.Namespace) -> ArchSpec:
    """LFM2 in small: gated short convolutions with k = 3, and GQA with two query heads to a key head."""
    heads = options.hidden // 64
    gqa = {"kind": "gqa", "heads": heads, "kv_heads": max(1, heads // 2), "head_dim": 64}
    conv = {"kind": "short_conv", "kernel_size": 3}
    swa, gla = gqa | {"kind": "swa", "window": options.window}, {"kind": "gla", "heads": heads}
    mixer = {"short_conv": conv, "swa": swa, "gla": gla}[options.mixer]
    ffn = {"intermediate_size": options.ffn}
    rows = [{"operator": gqa if i in options.attention_at else mixer, "ffn": ffn} for i in range(options.layers)]
    return ArchSpec.from_dict({"name": "throughput", "hidden_size": options.hidden, "vocab_size": options.vocab, "layers": rows})


def flops_per_token(spec: ArchSpec, sequence: int) -> float:
    """Of forward and backward pass together."""
    forward = sum(block_costs(block, spec.dims).flops(tokens=sequence, context=0) for block in spec.layers) / sequence
    return 3 * (forward + 2 * spec.hidden_size * spec.vocab_size)


class RandomTokens:
    """What a `Trainer` needs of its data: the batch of any step."""

    tokenizer = SimpleNamespace(end_of_document=0)

    def __init__(self, options: argparse.Namespace) -> None:
        self.shape, self.vocab = (options.batch, options.sequence + 1), options.vocab

    def batches(self, *_: int) -> RandomTokens:
        return self

    def at(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        return np.random.default_rng(step).integers(self.vocab, size=self.shape)[rows]


class Ours:
    """The trainer."""

    def __init__(self, spec: ArchSpec, options: argparse.Namespace, precision: str, *, compiled: bool, products: Products) -> None:
        many = 1 << 30  # steps, so that the learning rate stays
        plan = TrainPlan(
            spec_id=spec.spec_id, parameters=0, data_fingerprint="", sources=(), text_field="", seed=0, sequence=options.sequence,
            batch=options.batch, micro_batch=options.batch, steps=many, learning_rate=OPTIMIZER["lr"], schedule="wsd", warmup_steps=0,
            decay_steps=1, eval_tokens=1, eval_steps=(), sample_tokens=0, prompts=(), threads=options.threads, dtype=precision,
            device=options.device, compile=compiled, products=products,
        )  # fmt: skip
        self.trainer = Trainer(spec, RandomTokens(options), plan)  # type: ignore[arg-type]

    def update(self) -> tuple[float, float]:
        return self.trainer.update()


class Theirs:
    """A plain loop around transformers' model, with our initial weights."""

    def __init__(self, spec: ArchSpec, options: argparse.Namespace, precision: str, *, compiled: bool, products: Products) -> None:
        from transformers import Lfm2Config, Lfm2ForCausalLM

        torch.manual_seed(0)  # as in a plan with seed 0
        ours = LanguageModel(spec)
        self.model = Lfm2ForCausalLM(Lfm2Config(**to_hf_config(spec), attn_implementation="sdpa", use_cache=False))
        weights = {to_hf_name(name, spec): parameter.detach().clone() for name, parameter in ours.named_parameters()}
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert set(missing) <= {"lm_head.weight"}, missing
        assert not unexpected, unexpected
        self.model = self.model.to(options.device).train()
        self.call = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), **OPTIMIZER)
        self.data, self.step, self.options, self.precision = RandomTokens(options), 0, options, precision
        self.products: Products = products

    def update(self) -> tuple[float, float]:
        with use_products(self.products):
            return self._update()

    def _update(self) -> tuple[float, float]:
        ids = torch.from_numpy(self.data.at(self.step)).to(self.options.device)
        # Its own shift drops the last target: labels one longer than the inputs give it the same targets as ours.
        labels = torch.nn.functional.pad(ids[:, 1:], (1, 0), value=-100)
        with torch.autocast(self.options.device, torch.bfloat16) if self.precision == "bf16" else nullcontext():
            loss = self.call(input_ids=ids[:, :-1], labels=labels, shift_labels=ids[:, 1:].contiguous()).loss
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item(), norm


def peak_flops(precision: str, device: str) -> float:
    """FLOP/s of the best of some large products, by either library."""
    best = 0.0
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        x, w = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))
        for library in LIBRARIES * 5:
            with use_products(library):
                start = time.perf_counter()
                (x @ w.T)[0, 0].item()  # item waits for the device
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def work(variant: str, precision: str, options: argparse.Namespace, pipe: Connection) -> None:
    """A process: make an update, or time the peak, whenever the pipe says so."""
    torch.set_num_threads(options.threads)
    spec = spec_of(options)
    if variant in ("transformers, kept", "transformers, as ours"):
        keep_freed_memory()
    if variant == "archsearch, plain":
        functions.by_hand = lambda x: False
    make = Ours if variant.startswith("archsearch") else Theirs
    fast = precision == "fp32" and variant in ("archsearch", "archsearch, compiled", "transformers, as ours")
    products = default_products(options.device) if fast else "blas"
    runner = make(spec, options, precision, compiled=variant.endswith("compiled"), products=products)
    pipe.send("ready")
    while (order := pipe.recv()) != "end":
        if order == "peak":
            pipe.send(peak_flops(precision, options.device))
        else:
            start = time.perf_counter()
            loss, norm = runner.update()
            pipe.send((time.perf_counter() - start, loss, norm))


def compare(precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Speeds, their spread, and shares of the peak, of all variants."""
    spec, context = spec_of(options), mp.get_context("spawn")
    pipes, processes = {}, []
    for variant in options.variants:
        pipes[variant], other = context.Pipe()
        processes.append(context.Process(target=work, args=(variant, precision, options, other), daemon=True))
        processes[-1].start()
        assert pipes[variant].recv() == "ready"

    def ask(variant: str, order: str) -> Any:
        pipes[variant].send(order)
        return pipes[variant].recv()

    seconds: dict[str, list[float]] = {variant: [] for variant in options.variants}
    peak = ask(options.variants[0], "peak")
    for number in range(WARM_UP + options.updates):
        results = {}
        for variant in random.Random(number).sample(options.variants, len(options.variants)):
            taken, *results[variant] = ask(variant, "update")
            seconds[variant].append(taken)
        if number == 0:
            check_agreement(results, precision)
        peak = max(peak, ask(options.variants[0], "peak"))
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send("end")
        process.join()
    tokens, per_token = options.batch * options.sequence, flops_per_token(spec, options.sequence)
    row: dict[str, Any] = {"precision": precision, "peak_gflops": peak / 1e9, "gflop_per_token": per_token / 1e9, "variants": {}}
    for variant, taken in seconds.items():
        speeds = sorted(tokens / s for s in taken[WARM_UP:])
        speed = statistics.median(speeds)
        row["variants"][variant] = {
            "tokens_per_s": speed,
            "quartiles": [float(q) for q in np.quantile(speeds, (0.25, 0.75))],
            "mfu": speed * per_token / peak,
            "first_s": taken[0],
        }
    return row


def check_agreement(results: dict[str, list[float]], precision: str) -> None:
    """The same loss and gradient norm on the same batch, or there is nothing to compare."""
    first = next(iter(results.values()))
    for variant, found in results.items():
        assert np.allclose(found, first, rtol=1e-4 if precision == "fp32" else 2e-2), (variant, found, first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ffn", type=int, default=4352)
    parser.add_argument("--mixer", choices=("short_conv", "swa", "gla"), default="short_conv")
    parser.add_argument("--window", type=int, default=64, help="of --mixer swa")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--attention-at", type=int, nargs="+", default=[2, 5, 7])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    options = parser.parse_args()
    if options.mixer != "short_conv":
        options.variants = [variant for variant in options.variants if variant in OURS]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in LanguageModel(spec_of(options)).parameters())
    for precision in options.precision:
        row = compare(precision, options)
        if options.json:
            print(json.dumps(row | {"parameters": parameters}))
            continue
        print(f"{precision}, {parameters / 1e6:.1f}M parameters, {options.batch} x {options.sequence}, {options.threads} threads", end=", ")
        print(f"{row['gflop_per_token']:.3f} GFLOP a token, peak {row['peak_gflops']:.0f} GFLOP/s")
        base = row["variants"].get("transformers", row["variants"][options.variants[-1]])["tokens_per_s"]
        for variant, one in row["variants"].items():
            low, high = one["quartiles"]
            speed = one["tokens_per_s"]
            print(f"  {variant:22} {speed:7.0f} tokens/s ({low:.0f}-{high:.0f})  {one['mfu']:.0%} of the peak  x{speed / base:.2f}")


if __name__ == "__main__":
    main()
