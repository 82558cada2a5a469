"""From a checkpoint to a folder that other runtimes can use. No export is handed out before its parity with torch was seen.

`to_onnx`, `to_hf` and `to_gguf` each write one format; `place` puts what they wrote where the user asked for it, or nothing at all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from archsearch.errors import InputError

if TYPE_CHECKING:
    from archsearch.parity import ParityReport

Format = Literal["onnx", "hf", "gguf"]
FORMATS: tuple[Format, ...] = ("onnx", "hf", "gguf")
MANIFEST = "export.json"
MAX_CONTEXT = 8192
"""Positions that an export names as its limit, where nobody says otherwise."""


def export(checkpoint: Path | str, out: Path | str, to: Format, **options: Any) -> ParityReport:
    """Export to any format; `options` are those of `export_onnx` and `export_gguf`, None for the default.

    Raises:
        InputError: an unknown format, or options that do not go with the format.
    """
    options = {name: value for name, value in options.items() if value is not None}
    match to:
        case "onnx":
            from archsearch.export.to_onnx import export_onnx

            return export_onnx(checkpoint, out, **options)
        case "hf":
            from archsearch.export.to_hf import export_hf

            if given := options.keys() - {"held_out"}:
                raise InputError(f"{', '.join(sorted(given))}: only for onnx and gguf; a Hugging Face export is fp32 and takes any context")
            return export_hf(checkpoint, out, **options)
        case "gguf":
            from archsearch.export.to_gguf import export_gguf

            return export_gguf(checkpoint, out, **options)
    raise InputError(f"{to!r}: no such format; known: {', '.join(FORMATS)}")
