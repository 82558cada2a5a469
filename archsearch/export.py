"""From a checkpoint to a folder that other runtimes can use. No export is handed out before its parity with torch was seen.

Everything is written to a hidden folder beside the target and renamed when parity holds; otherwise nothing is left behind.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from archsearch import __version__
from archsearch.checkpoint import TOKENIZER, Checkpoint
from archsearch.errors import InputError, ParityError, RunError
from archsearch.files import write_atomic
from archsearch.hf import MAX_POSITIONS
from archsearch.parity import Decoder, Logits, ParityReport, Weights, measure_parity
from archsearch.spec import ArchSpec
from operators.graph import Runner, write_model
from operators.specs import PRECISIONS, Precision

log = logging.getLogger(__name__)

Format = Literal["onnx", "hf", "gguf"]
FORMATS: tuple[Format, ...] = ("onnx", "hf", "gguf")
MANIFEST = "export.json"
MODEL = "model.onnx"
MAX_CONTEXT = 8192
"""Positions that an ONNX file has rotary embeddings for, where nobody says otherwise."""

ONNX_USAGE = """\
`{model}` is one graph in {precision}: embedding, {layers} layers and head, for prefill and decode, up to {max_context} positions.

- inputs: `input_ids` [batch, tokens]; `attention_mask` [batch, context + tokens] where there is attention; the caches `past_*`
- outputs: `logits` [batch, 1, vocabulary] of the last position; the caches `present_*`
- key/value caches are updated in place: bind each `present.*` to the buffer of its `past_key_values.*`
- ONNX Runtime 1.32 or newer runs it (it has operators of the domain com.microsoft)

Measure it: `archsearch bench {model} --device local`
"""
HF_USAGE = """\
Load it with transformers: `AutoModelForCausalLM.from_pretrained("DIR")` and `AutoTokenizer.from_pretrained("DIR")`.
"""
README = """\
# {name}

{pattern}; hidden size {hidden_size}, vocabulary {vocab_size}. Exported by archsearch {version} from step {step}.

{usage}
Checked against {reference} in torch: {report}. Details: `{manifest}`.
"""


def export(checkpoint: Path | str, out: Path | str, to: Format, **options: Any) -> ParityReport:
    """Export to any format; `options` are those of `export_onnx`, None for the default.

    Raises:
        InputError: an unknown format, GGUF, or options that do not go with the format.
    """
    options = {name: value for name, value in options.items() if value is not None}
    match to:
        case "onnx":
            return export_onnx(checkpoint, out, **options)
        case "hf":
            if given := options.keys() - {"held_out"}:
                raise InputError(f"{', '.join(sorted(given))}: only for onnx; a Hugging Face export is fp32 and takes any context")
            return export_hf(checkpoint, out, **options)
        case "gguf":
            raise InputError(
                "gguf: not written by this version; use `archsearch export CHECKPOINT --to hf --out DIR` and then llama.cpp's "
                "convert_hf_to_gguf.py, as docs/export.md describes under GGUF"
            )
    raise InputError(f"{to!r}: no such format; known: {', '.join(FORMATS)}")


def export_onnx(
    checkpoint: Path | str,
    out: Path | str,
    precision: Precision = "int4",
    *,
    max_context: int = MAX_CONTEXT,
    held_out: Sequence[int] | None = None,
) -> ParityReport:
    """One ONNX graph for prefill and decode, with embedding, all layers, final norm, head, and caches as inputs and outputs.

    Args:
        out: the folder to be made; an older export in it is replaced.
        held_out: tokens the model was not trained on, to tell what the precision costs in bits per byte.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete or damaged.
        InputError: an unknown precision, a context too small to be checked, or a folder that holds something else.
        ParityError: the graph computes something else than the model; nothing is left behind.
        RunError: the disk is full or the place cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
    source = Checkpoint.open(checkpoint)
    spec, weights = source.spec, source.weights()

    def fill(folder: Path) -> ParityReport:
        write_onnx(folder / MODEL, spec, weights, precision, max_context)
        return measure_parity(
            OnnxDecoder(folder / MODEL),
            spec,
            weights,
            format="onnx",
            precision=precision,
            path=folder,
            max_context=max_context,
            held_out=held_out,
            token_bytes_V=source.tokenizer().token_bytes_V,
        )

    usage = ONNX_USAGE.format(model=MODEL, layers=len(spec.layers), precision=precision, max_context=max_context)
    return _place(source, Path(out), fill, usage)


def export_hf(checkpoint: Path | str, out: Path | str, *, held_out: Sequence[int] | None = None) -> ParityReport:
    """A folder for transformers' `AutoModelForCausalLM.from_pretrained`, in fp32, as an LFM2 or LFM3 model.

    Raises:
        HfConfigError: the layout has no counterpart there (GLA, or dimensions that differ between layers).
        RunError: transformers is not installed; unchecked conversions go wrong in silence, so none is made.
        CheckpointError, InputError, ParityError: as `export_onnx`.
    """
    from archsearch import hf_files

    hf_files.require_transformers()
    source = Checkpoint.open(checkpoint)
    spec, weights, tokenizer = source.spec, source.weights(), source.tokenizer()

    def fill(folder: Path) -> ParityReport:
        hf_files.write_folder(folder, spec, weights, tokenizer)
        decoder = hf_files.HfDecoder(folder)
        report = measure_parity(
            decoder,
            spec,
            weights,
            format="hf",
            precision="fp32",
            path=folder,
            max_context=MAX_POSITIONS,
            held_out=held_out,
            token_bytes_V=tokenizer.token_bytes_V,
        )
        if report.holds:
            hf_files.check_generate(decoder, spec, weights)
            hf_files.check_tokenizer(folder, tokenizer)
        return report

    return _place(source, Path(out), fill, HF_USAGE)


def write_onnx(path: Path, spec: ArchSpec, weights: Weights, precision: Precision, max_context: int) -> None:
    """The whole model as ONNX, unchecked."""
    write_model(
        path,
        spec.layers,
        spec.dims,
        vocab_size=spec.vocab_size,
        tie_embeddings=spec.tie_embeddings,
        precision=precision,
        max_context=max_context,
        weights=weights,
    )


class OnnxDecoder(Decoder):
    """An exported graph in ONNX Runtime.

    Raises:
        ParityError: the runtime does not load or run it.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with self._reporting():
            self.runner = Runner(path)

    def start(self, positions: int) -> None:
        self.runner.start(batch=1, capacity=positions)

    def step(self, ids: Sequence[int]) -> Logits:
        with self._reporting():
            return cast(Logits, self.runner.step(np.array([list(ids)]))[0, -1])

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # The runtime's errors have no base of their own, only this module.
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ParityError(f"{self.name}: ONNX Runtime cannot run it, so nothing was written: {reason}") from error


def _place(source: Checkpoint, out: Path, fill: Callable[[Path], ParityReport], usage: str) -> ParityReport:
    """Let `fill` write into a folder beside `out`, and put it there if parity holds."""
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out}: is no export and not empty; choose another --out")
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        report = fill(folder)
        if not report.holds:
            raise ParityError(f"{source.spec.name} computes something else as {report.format}, so nothing was written: {report}")
        log.info("parity holds: %s", report)
        shutil.copyfile(source.file(TOKENIZER), folder / TOKENIZER)
        source.spec.write(folder / "spec.toml")
        report = report.at(out)
        _describe(folder, source, report, usage)
        for file in folder.iterdir():  # safetensors and onnx write large files that nobody else may read
            file.chmod((folder / MANIFEST).stat().st_mode)
        _replace(folder, out)
    except OSError as error:
        raise RunError(f"{out}: cannot be written: {error.strerror or error}; free some space or choose another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _describe(folder: Path, source: Checkpoint, report: ParityReport, usage: str) -> None:
    """`export.json` for machines, `README.md` for people."""
    manifest = {
        "archsearch": __version__,
        "format": report.format,
        "precision": report.precision,
        "spec_id": source.spec.spec_id,
        "step": source.step,
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "parity": {key: value for key, value in report.to_dict().items() if key != "path"},
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=2, allow_nan=False) + "\n")
    spec = source.spec
    readme = README.format(
        name=spec.name,
        pattern=spec.pattern,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        version=__version__,
        step=source.step,
        usage=usage,
        reference=report.reference,
        report=report,
        manifest=MANIFEST,
    )
    write_atomic(folder / "README.md", readme)


def _replace(folder: Path, out: Path) -> None:
    if not out.exists():
        folder.rename(out)
        return
    old = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
