"""The way back: a folder of transformers becomes a checkpoint, if it is a layout that a spec can say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from archsearch.checkpoint import Checkpoint, save_checkpoint
from archsearch.data.tokenizer import Tokenizer, read_tokenizer
from archsearch.errors import FileFormatError, InputError, ParityError, RunError
from archsearch.export.to_hf import HfDecoder, require_transformers
from archsearch.hf import MAX_POSITIONS, from_hf_config, from_hf_name
from archsearch.parity import ParityReport, Weights, measure_parity
from archsearch.spec import ArchSpec
from operators.costs import model_weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def import_hf(folder: Path | str, out: Path | str, *, tokenizer: Path | None = None, name: str | None = None) -> ParityReport:
    """Make a checkpoint of a transformers folder with an LFM2 model, an LFM3 one that is plain LFM2 with windows, or one of our exports.

    Args:
        tokenizer: a tokenizer.json, where the folder has none.
        name: of the spec; default: the folder's.

    Returns:
        The checkpoint in torch beside the folder in transformers.

    Raises:
        HfConfigError: the model is none that a spec can say; names every field that stands in the way.
        FileFormatError: a file is missing or damaged, or a weight is missing, unknown or of another shape.
        InputError: `out` is not empty.
        ParityError: the checkpoint computes something else than transformers does; nothing is left behind.
        RunError: transformers is not installed, or the place cannot be written.
    """
    require_transformers()
    folder, out = Path(folder), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: is not empty; choose another --out")
    config = _read_json(folder / "config.json")
    spec = from_hf_config(config, name=name or folder.resolve().name)
    words = _tokenizer(folder, tokenizer, spec)
    weights = _weights(folder, spec)
    with HfDecoder(folder, ours=False) as decoder:
        report = measure_parity(decoder, spec, weights, format="hf", precision="fp32", path=out, max_context=MAX_POSITIONS)
    if not report.holds:
        raise ParityError(f"{folder}: transformers computes something else than {spec.name} in torch, so nothing was written: {report}")

    def write(place: Path) -> None:
        from safetensors.numpy import save_file

        save_file(dict(weights), place / WEIGHTS)
        (place / "tokenizer.json").write_text(words.to_json(), encoding="utf-8")

    try:
        save_checkpoint(out, spec, 0, write)
    except RunError as error:
        with suppress(OSError):
            out.rmdir()  # there is no older checkpoint in it to go on from
        reason = error.__cause__ or error
        raise RunError(f"{out}: cannot be written: {getattr(reason, 'strerror', None) or reason}; free some space") from error
    Checkpoint.open(out).weights()  # reads it back, hashes and all
    return report


def _tokenizer(folder: Path, given: Path | None, spec: ArchSpec) -> Tokenizer:
    path = given or folder / "tokenizer.json"
    if given is None and not path.is_file():
        raise FileFormatError(path, None, "no such file; name one with --tokenizer")
    return read_tokenizer(path, vocab_size=spec.vocab_size)


def _weights(folder: Path, spec: ArchSpec) -> Weights:
    """All weights under our names, in fp32, shapes checked."""
    expected = {
        weight.name: weight.shape
        for weight in model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    }
    weights: dict[str, Any] = {}
    for path, name, value in _tensors(folder):
        ours = from_hf_name(name)
        if ours == "lm_head.weight" and spec.tie_embeddings:
            continue  # a copy of the embedding, which some programs save
        if ours not in expected:
            raise FileFormatError(path, name, f"is no weight of {spec.pattern}")
        if value.shape != expected[ours]:
            raise FileFormatError(path, name, f"has the shape {value.shape}, the config says {expected[ours]}")
        weights[ours] = value
    if missing := sorted(expected.keys() - weights.keys()):
        raise FileFormatError(folder, None, f"lacks {len(missing)} weights of {spec.pattern}, among them {missing[0]}")
    return weights


def _tensors(folder: Path) -> Iterator[tuple[Path, str, npt.NDArray[np.float32]]]:
    """(file, name, value in fp32) of one file, or of the several that an index names."""
    from safetensors import SafetensorError, safe_open

    names = [WEIGHTS]
    if (folder / INDEX).is_file():
        names = sorted(set(_read_json(folder / INDEX).get("weight_map", {}).values()))
    for path in (folder / name for name in names):
        try:
            with safe_open(path, framework="pt") as file:  # numpy has no bf16
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    yield path, name, file.get_tensor(name).float().numpy()
        except FileNotFoundError as error:
            raise FileFormatError(path, None, "no such file; only safetensors are read") from error
        except (SafetensorError, OSError) as error:
            raise FileFormatError(path, None, f"is no readable safetensors file: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileFormatError(path, None, "no such file; a folder that transformers can load is wanted") from error
    except (OSError, ValueError) as error:
        raise FileFormatError(path, None, f"cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise FileFormatError(path, None, "must hold a JSON object")
    return data
