"""How far trainings in several processes end from one process's: `python benchmarks/parallel_rounding.py [--processes 2]`, a minute.

A model of every operator, trained for twelve updates of five sequences (which two processes cannot share evenly) with documents kept
apart, in one process and under torchrun with DDP and FSDP2; once in fp32 and once in float64, where sums in another order can
matter a billion times less. Losses and gradient norms are compared relatively, weights and moments absolutely.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings, read_metrics, train
from operators.specs import BlockSpec, FfnSpec, GlaSpec, GqaSpec, ShortConvSpec, SwaSpec

OPERATORS = [
    ShortConvSpec(kernel_size=3),
    SwaSpec(heads=2, kv_heads=1, head_dim=16, window=8),
    GlaSpec(heads=2),
    GqaSpec(heads=2, kv_heads=1, head_dim=16),
]


def work(folder: Path, kind: str, dtype: str) -> None:
    """One process's share of a training."""
    import torch

    torch.set_default_dtype(getattr(torch, dtype))
    blocks = tuple(BlockSpec(operator=operator, ffn=FfnSpec(intermediate_size=64)) for operator in OPERATORS)
    spec = ArchSpec(name="tiny", hidden_size=32, vocab_size=300, layers=blocks)
    asked: dict[str, Any] = {"tokens": 12 * 5 * 32, "sequence": 32, "batch": 5, "micro_batch": 2, "evaluations": 3, "eval_tokens": 256}
    settings = TrainSettings(**asked, sample_tokens=0, threads=1, dtype="fp32", isolate_documents=True, parallel=kind)  # type: ignore[arg-type]
    for _ in train(spec, [folder / "texts"], folder / f"{kind}-{dtype}", settings=settings, cache_dir=folder / "cache"):
        pass


def write_texts(folder: Path) -> None:
    words = ["the", "a", "red", "blue", "green", "cat", "dog", "sees", "hears", "finds", "loses", "one", "two"]
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(80):
        (folder / f"{i:02}.txt").write_text(" ".join(rng.choice(words, size=200)) + f" {i}.\n")


def result(out: Path) -> tuple[dict[str, Any], np.ndarray[Any, Any], list[float]]:
    """(weights and moments, loss and norm of every update, held-out losses)"""
    rows = read_metrics(out)
    curve = np.array([(row["loss"], row["grad_norm"]) for row in rows if row["event"] == "step"])
    tensors = {**load_file(out / "model.safetensors"), **load_file(out / "optimizer.safetensors")}
    return tensors, curve, [row["held_out"]["nats_per_token"] for row in rows if row["event"] == "evaluated"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", nargs=3, metavar=("FOLDER", "KIND", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(Path(arguments.work[0]), *arguments.work[1:])
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
    print(f"{arguments.processes} processes   largest difference from one process: losses, norms, weights and moments; first evaluation")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "texts")
        for dtype in ("float64", "float32"):
            for kind in ("auto", "ddp", "fsdp"):
                start = [sys.executable] if kind == "auto" else launcher
                subprocess.run([*start, __file__, "--work", name, kind, dtype], check=True)
            tensors, curve, evaluations = result(folder / f"auto-{dtype}")
            for kind in ("ddp", "fsdp"):
                others, other_curve, other_evaluations = result(folder / f"{kind}-{dtype}")
                losses, norms = np.abs(other_curve / curve - 1).max(axis=0)
                weights = max(float(np.abs(tensors[key] - others[key]).max()) for key in tensors)
                same = "the same bits" if evaluations[0] == other_evaluations[0] else "differs"
                print(f"{dtype}  {kind:<5} {losses:.1e}  {norms:.1e}  {weights:.1e}  {same}")


if __name__ == "__main__":
    main()
