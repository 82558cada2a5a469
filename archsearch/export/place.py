"""Where an export goes: written to a hidden folder beside the target and renamed when parity holds; otherwise nothing is left."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from archsearch import __version__
from archsearch.checkpoint import TOKENIZER, Checkpoint
from archsearch.errors import InputError, ParityError, RunError
from archsearch.export import MANIFEST
from archsearch.files import write_atomic
from archsearch.parity import ParityReport

log = logging.getLogger(__name__)

README = """\
# {name}

{pattern}; hidden size {hidden_size}, vocabulary {vocab_size}. Exported by archsearch {version} from step {step}.

{usage}
Checked against {reference} in torch: {report}. Details: `{manifest}`.
"""


def place(source: Checkpoint, out: Path, fill: Callable[[Path], ParityReport], usage: str) -> ParityReport:
    """Let `fill` write into a folder beside `out`, and put it there if parity holds.

    Raises:
        InputError: `out` holds something that is no export.
        ParityError: the export computes something else than the model.
        RunError: the disk is full or the place cannot be written.
    """
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out}: is no export and not empty; choose another --out")
    folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        report = fill(folder)
        if not report.holds:
            raise ParityError(f"{source.spec.name} computes something else as {report.format}, so nothing was written: {report}")
        log.info("parity holds: %s", report)
        if not (folder / TOKENIZER).exists():
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
