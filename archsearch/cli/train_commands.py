"""Commands that make a model: train and export."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from archsearch.cli.app import JsonOption, app, print_json


@app.command(epilog="Example: archsearch train runs/demo/spec.toml --data my_texts/ --out checkpoint --tokens 2000000")
def train(
    path: Annotated[Path, typer.Argument(metavar="SPEC", help="A spec file.")],
    out: Annotated[Path, typer.Option("--out", metavar="CHECKPOINT", help="The checkpoint folder.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="PATH[:WEIGHT]",
            help="Text, JSONL, Parquet, folders of them, or hf:REPO; may be repeated. Default: Python's own sources.",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, metavar="N", help="Training tokens; default: 20 a parameter, or what there is.")
    ] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", metavar="M", help="Train for so long instead of --tokens.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in --out.")] = False,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak; default: by width.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Sequences of an update.")] = None,
    sequence: Annotated[int | None, typer.Option("--sequence", min=2, help="Tokens of a sequence.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    text_field: Annotated[
        str, typer.Option("--text-field", help="The field of JSONL, or column of Parquet, that holds the text.")
    ] = "text",
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json, or a folder with one; default: a new BPE.")
    ] = None,
    log: Annotated[
        list[str] | None, typer.Option("--log", metavar="NAME", help="tensorboard or trackio, beside metrics.jsonl; may be repeated.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", metavar="MODEL", help="Learn from a causal LM of transformers too: a folder, or a hub name.")
    ] = None,
    teacher_weight: Annotated[
        float, typer.Option("--teacher-weight", metavar="W", help="Share of the loss that is the divergence from the teacher.")
    ] = 0.5,
    teacher_top_k: Annotated[int, typer.Option("--teacher-top-k", metavar="K", help="Tokens of its distribution that are kept.")] = 32,
    teacher_temperature: Annotated[
        float, typer.Option("--teacher-temperature", metavar="T", help="Above 1: the unlikely ones among them count for more.")
    ] = 1.0,
    cache_teacher: Annotated[
        bool, typer.Option("--cache-teacher", help="Keep on disk what it says, for other trainings on the same batches.")
    ] = False,
    optimizer: Annotated[
        Literal["adamw", "muon"], typer.Option("--optimizer", help="muon: for the hidden matrices, AdamW for the rest.")
    ] = "adamw",
    dtype: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option("--dtype", help="Of matrix products; default: bf16 where the processor has instructions for it."),
    ] = None,
    products: Annotated[
        Literal["blas", "onednn"] | None,
        typer.Option("--products", help="Library that multiplies fp32 matrices; default: the faster one for the processor."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Default: the cores; on a busy machine fewer may be faster.")
    ] = None,
    compile_layers: Annotated[
        bool, typer.Option("--compile", help="torch.compile the layers: half a minute at the start, faster steps after it.")
    ] = False,
    max_spike: Annotated[
        float, typer.Option("--max-spike", min=0, metavar="NATS", help="Stop when the loss leaps so far above its recent median; 0: never.")
    ] = 3.0,
    isolate_documents: Annotated[
        bool, typer.Option("--isolate-documents", help="Keep documents that share a sequence from seeing each other.")
    ] = False,
    parallel: Annotated[
        Literal["auto", "ddp", "fsdp"],
        typer.Option("--parallel", help="Under torchrun: each process holds the model (ddp), or a part of it (fsdp); docs/cluster.md."),
    ] = "auto",
    json_output: JsonOption = False,
) -> None:
    """Train a spec on text; Ctrl-C saves, --resume goes on to the very same weights. On several devices: torchrun."""
    from archsearch.checkpoint import is_checkpoint
    from archsearch.cli.progress import show, stage
    from archsearch.data import read_tokenizer
    from archsearch.spec import ArchSpec
    from archsearch.train import Finished, Sampled, TrainSettings
    from archsearch.train import train as run_training
    from archsearch.train.loggers import open_logger
    from archsearch.train.parallel import launched

    launch = launched()
    first = launch is None or launch.rank == 0  # of several processes one shows what all do
    if launch is not None and launch.restarts:
        resume = resume or is_checkpoint(out)  # torchrun has started this very line again
    spec = ArchSpec.read(path)
    settings = TrainSettings(
        tokens=tokens,
        max_seconds=None if minutes is None else 60 * minutes,
        learning_rate=learning_rate,
        batch=batch,
        sequence=sequence,
        seed=seed,
        isolate_documents=isolate_documents,
        optimizer=optimizer,
        dtype=dtype,
        products=products,
        threads=threads,
        compile=compile_layers,
        max_spike=max_spike,
        teacher=teacher,
        teacher_weight=teacher_weight,
        teacher_top_k=teacher_top_k,
        teacher_temperature=teacher_temperature,
        cache_teacher=cache_teacher,
        parallel=parallel,
    )
    given = None if tokenizer is None else read_tokenizer(tokenizer, vocab_size=spec.vocab_size)
    loggers = [open_logger(name, out) for name in log or ()] if first else []
    finished: Finished | None = None
    samples: Any = ()
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(stage("train", bar_width=6)) if first else None
        for logger in loggers:
            stack.callback(logger.close)
        events = run_training(
            spec,
            data or [],
            out,
            settings=settings,
            resume=resume,
            text_field=text_field,
            tokenizer=given,
            progress=None if bar is None else partial(show, bar),
        )
        for event in events:
            if bar is not None:
                show(bar, event)
            for logger in loggers:
                logger.log(event)
            match event:
                case Finished():
                    finished = event
                case Sampled():
                    samples = event.samples
    assert finished is not None
    if not first:
        return
    if json_output:
        print_json(
            {
                "checkpoint": str(out),
                "spec_id": spec.spec_id,
                "steps": finished.step,
                "tokens": finished.tokens,
                "seconds": finished.seconds,
                "held_out_bits_per_byte": {"before": finished.before.bits_per_byte, "after": finished.after.bits_per_byte},
            }
        )
        return
    from archsearch.cli.tables import stdout

    for sample in samples[:2]:
        stdout.print(f"[dim]{sample.prompt[-160:]!r}[/dim] → {sample.text[:240]!r}", markup=True)
    stdout.print(
        f"{out}: {finished.tokens:,} tokens in {finished.seconds / 60:.1f} min, "
        f"held-out bits per byte {finished.before.bits_per_byte:.3f} → [bold]{finished.after.bits_per_byte:.3f}[/]"
    )


@app.command(epilog="Example: archsearch export checkpoint --to onnx --out exported")
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")],
    to: Annotated[Literal["onnx", "hf", "gguf"], typer.Option("--to", help="onnx, hf (Hugging Face transformers) or gguf (llama.cpp).")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to be made.")],
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="onnx: fp32, int8, int4 (default) or int4g128; gguf: f32, f16, q8_0 or q4_0 (default)."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option("--max-context", min=8, help="onnx and gguf: positions it can hold; default 8192.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Export a checkpoint; handed out only when it computes what the trained model does."""
    from archsearch.cli.tables import stderr
    from archsearch.export import export as write

    with stderr.status("writing, and comparing with torch ..."):
        report = write(checkpoint, out, to, precision=precision, max_context=max_context)
    if json_output:
        print_json(report.to_dict())
    else:
        typer.echo(f"{out}: {report}")


@app.command("import", epilog="Example: archsearch import models/LFM2-350M --out checkpoint")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model as transformers saves it: config.json and safetensors.")],
    out: Annotated[Path, typer.Option("--out", metavar="CHECKPOINT", help="The checkpoint folder to be made.")],
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", metavar="FILE", help="A tokenizer.json; default: the one in FOLDER.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the spec; default: the folder's.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a checkpoint of an LFM2 model, or of an export; handed out only when it computes what transformers does."""
    from archsearch.cli.tables import stderr
    from archsearch.export.from_hf import import_hf
    from archsearch.spec import ArchSpec

    with stderr.status("reading, and comparing with transformers ..."):
        report = import_hf(folder, out, tokenizer=tokenizer, name=name)
    if json_output:
        print_json({"checkpoint": str(out), "spec_id": ArchSpec.read(out / "spec.toml").spec_id, "parity": report.to_dict()})
    else:
        typer.echo(f"{out}: {report}")
