"""AdamW and Muon at equal tokens: the held-out loss of the same small model, several seeds and learning rates each.

    python benchmarks/optimizers.py [--hidden 128 --steps 300 --seeds 0 1 --learning-rates 1e-3 3e-3 6e-3] [--data PATH]...

Text is the standard library's unless `--data` says otherwise. Both rules see the same batches; the time is that of the process's own CPU
seconds, so that other processes do not count. Printed: bits per byte of held-out text, mean and every seed, and CPU seconds an update.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from archsearch.data import open_corpus, prepare
from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings
from archsearch.train.evaluate import evaluate
from archsearch.train.planning import make_plan
from archsearch.train.trainer import Trainer


def spec_of(hidden: int, vocab: int) -> ArchSpec:
    """Two gated convolutions, a GQA, a convolution."""
    conv = {"kind": "short_conv", "kernel_size": 3}
    gqa = {"kind": "gqa", "heads": hidden // 32, "kv_heads": max(1, hidden // 64), "head_dim": 32}
    rows = [{"operator": operator, "ffn": {"intermediate_size": 4 * hidden}} for operator in (conv, conv, gqa, conv)]
    return ArchSpec.from_dict({"name": "optimizers", "hidden_size": hidden, "vocab_size": vocab, "layers": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3, 6e-3])
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "muon"])
    parser.add_argument("--data", type=Path, action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = spec_of(options.hidden, options.vocab)
    data = prepare(open_corpus(options.data), options.vocab)
    settings = TrainSettings(
        tokens=options.steps * options.batch * options.sequence,
        batch=options.batch,
        sequence=options.sequence,
        eval_tokens=16_384,
        threads=1,
        dtype="fp32",
    )
    for optimizer in options.optimizers:
        for learning_rate in options.learning_rates:
            found, cpu = [], []
            for seed in options.seeds:
                plan = make_plan(spec, data, replace(settings, seed=seed, learning_rate=learning_rate, optimizer=optimizer))
                trainer, begun = Trainer(spec, data, plan), time.process_time()
                for _ in range(plan.steps):
                    trainer.update()
                cpu.append((time.process_time() - begun) / plan.steps)
                found.append(evaluate(trainer.model, data, plan).bits_per_byte)
            each = " ".join(f"{value:.3f}" for value in found)
            seconds = f"{statistics.mean(cpu):.3f} CPU s an update"
            print(f"{optimizer:6} {learning_rate:g}: {statistics.mean(found):.3f} ({each})  {seconds}", flush=True)


if __name__ == "__main__":
    main()
