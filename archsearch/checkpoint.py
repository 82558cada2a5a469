"""Checkpoints: a folder that is always whole, whenever the power goes.

    model.safetensors      weights, fp32, named as in the published LFM2 checkpoints
    spec.toml              the architecture
    tokenizer.json
    optimizer.safetensors  the moments               } what only a resume needs
    trainer.json           plan, position, results   }
    checkpoint.json        the manifest: step, and size and SHA-256 of every file above

While several processes train a model that each holds a part of, weights and moments lie in one file a process
(`archsearch.parts`) in place of model.safetensors and optimizer.safetensors; the last save has whole ones.

A save writes all of it into `.incoming/`, flushes it to disk and renames that to `.complete/`: from then on the new
checkpoint stands. Its files then move up one by one, the manifest last. A reader who finds `.complete/` takes each
file from there, or from above if it has moved already; so every moment between two system calls leaves one whole
checkpoint, the old one or the new one. No torch here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from archsearch.data.tokenizer import Tokenizer, read_tokenizer
from archsearch.errors import ArchsearchError, CheckpointError, RunError
from archsearch.spec import ArchSpec

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = 1
MANIFEST = "checkpoint.json"
MODEL = "model.safetensors"
SPEC = "spec.toml"
TOKENIZER = "tokenizer.json"
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"
NEEDED = (SPEC, TOKENIZER)
PARTS = "shard-"
"""What names of files of a part begin with, as torch gives them."""

INCOMING = ".incoming"
COMPLETE = ".complete"


class FileSum(BaseModel):
    """What a manifest says of a file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path) -> FileSum:
        return cls(bytes=path.stat().st_size, sha256=_sha256(path))


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    format: int
    version: str
    spec_id: str
    step: Annotated[int, Field(ge=0)]
    files: dict[str, FileSum]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened: its manifest read, the files checked when they are asked for.

    Attributes:
        step: updates that the weights have seen.
    """

    path: Path
    spec: ArchSpec
    step: int
    _manifest: _Manifest

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read manifest and spec.

        Raises:
            CheckpointError: no checkpoint, or an incomplete, corrupt or newer one; names the file.
        """
        path = Path(path)
        manifest = _read_manifest(path)
        for name in NEEDED:
            if name not in manifest.files:
                raise CheckpointError(f"{path / MANIFEST}: lists no {name}; {WAY_OUT}")
        if MODEL not in manifest.files and not any(name.startswith(PARTS) for name in manifest.files):
            raise CheckpointError(f"{path / MANIFEST}: lists no {MODEL}; {WAY_OUT}")
        try:
            spec = ArchSpec.read(_checked(path, manifest, SPEC))
        except CheckpointError:
            raise
        except ArchsearchError as error:
            raise CheckpointError(str(error)) from error
        if spec.spec_id != manifest.spec_id:
            raise CheckpointError(f"{path / SPEC}: is {spec.spec_id}, the weights belong to {manifest.spec_id}; {WAY_OUT}")
        return cls(path=path, spec=spec, step=manifest.step, _manifest=manifest)

    def file(self, name: str) -> Path:
        """Where one of the files lies, after its size and hash were checked.

        Raises:
            CheckpointError: the file is missing or is not what was saved.
        """
        if name not in self._manifest.files:
            raise CheckpointError(f"{self.path}: has no {name}, so it can be used but not resumed; {WAY_OUT}")
        return _checked(self.path, self._manifest, name)

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights by name.

        Raises:
            CheckpointError: as `file`.
        """
        if not self.parts:
            return read_tensors(self.file(MODEL))
        from archsearch.parts import read_parts

        with self.parts_folder(self.parts) as folder:
            return {name: tensor.numpy() for name, tensor in read_parts(folder).items() if "/" not in name}  # with one it is a moment

    @property
    def parts(self) -> list[str]:
        """The files that hold a part of weights and moments each; none where they are whole."""
        return sorted(name for name in self._manifest.files if name.startswith(PARTS))

    @contextmanager
    def parts_folder(self, checked: Sequence[str]) -> Iterator[Path]:
        """A folder of the parts alone, wherever they lie.

        Args:
            checked: the files whose size and hash are checked first; processes that read together may share this out.

        Raises:
            CheckpointError: as `file`.
        """
        for name in checked:
            self.file(name)
        with tempfile.TemporaryDirectory(prefix="archsearch-") as folder:
            for name in self.parts:
                (Path(folder) / name).symlink_to(_place(self.path, name).absolute())
            yield Path(folder)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            CheckpointError: as `file`.
        """
        try:
            return read_tokenizer(self.file(TOKENIZER))
        except CheckpointError:
            raise
        except ArchsearchError as error:
            raise CheckpointError(str(error)) from error


WAY_OUT = "copy the checkpoint again, or train again into another --out"


def is_checkpoint(path: Path | str) -> bool:
    """Whether a folder holds a checkpoint, whole or damaged."""
    return any((Path(path) / place / MANIFEST).is_file() for place in ("", COMPLETE))


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A safetensors file.

    Raises:
        CheckpointError: not one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is no readable safetensors file: {error}; {WAY_OUT}") from error


def save_checkpoint(path: Path, spec: ArchSpec, step: int, write: Callable[[Path], Mapping[str, FileSum] | None]) -> None:
    """Replace the checkpoint in `path`, so that a crash at any moment leaves the old or the new one.

    Args:
        write: puts every file but spec and manifest into the folder it is given; says what it knows of files that other processes
            have written and flushed to disk.

    Raises:
        RunError: the disk is full or cannot be written; the old checkpoint is untouched.
    """
    from archsearch import __version__

    incoming, complete = path / INCOMING, path / COMPLETE
    try:
        path.mkdir(parents=True, exist_ok=True)
        _move_up(path)
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir()
        spec.write(incoming / SPEC)
        known = write(incoming) or {}
        for file in incoming.iterdir():
            file.chmod((incoming / SPEC).stat().st_mode)  # safetensors makes its files unreadable for others
        files = {file.name: known.get(file.name) or FileSum.of(file) for file in sorted(incoming.iterdir())}
        manifest = _Manifest(format=FORMAT, version=__version__, spec_id=spec.spec_id, step=step, files=files)
        (incoming / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        for file in (*(file for file in incoming.iterdir() if file.name not in known), incoming):
            _flush(file)
        incoming.rename(complete)
        _flush(path)
        _move_up(path)
        for file in path.iterdir():  # what a save by more processes, or by fewer, has left
            if (file.name.startswith(PARTS) or file.name in (MODEL, OPTIMIZER)) and file.name not in files:
                file.unlink()
    except Exception as error:  # safetensors reports a full disk with an error of its own
        shutil.rmtree(incoming, ignore_errors=True)
        if isinstance(error, ArchsearchError):
            raise
        raise RunError(
            f"{path}: the checkpoint of step {step} cannot be written: {getattr(error, 'strerror', None) or error}; "
            "free some space and resume from the one before, which is untouched"
        ) from error


def _move_up(path: Path) -> None:
    """Finish a save that reached `.complete/`."""
    complete = path / COMPLETE
    if not (complete / MANIFEST).is_file():
        shutil.rmtree(complete, ignore_errors=True)  # empty: all its files have moved
        return
    names = [file.name for file in complete.iterdir() if file.name != MANIFEST]
    for name in (*names, MANIFEST):
        (complete / name).replace(path / name)
    _flush(path)
    complete.rmdir()


def _read_manifest(path: Path) -> _Manifest:
    if not path.is_dir():
        raise CheckpointError(f"{path}: {'is a file, not a checkpoint folder' if path.exists() else 'no such checkpoint folder'}")
    file = path / COMPLETE / MANIFEST
    if not file.is_file():
        file = path / MANIFEST
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, Mapping) and isinstance(data.get("format"), int) and data["format"] > FORMAT:
            raise CheckpointError(f"{file}: has format {data['format']}, this version reads {FORMAT}; update archsearch")
        return _Manifest.model_validate(data)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: holds no checkpoint (no {MANIFEST}); train one with: archsearch train SPEC --out {path}") from error
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{file}: cannot be read: {str(error).splitlines()[0]}; {WAY_OUT}") from error


def _checked(path: Path, manifest: _Manifest, name: str) -> Path:
    file = _place(path, name)
    expected = manifest.files[name]
    try:
        size = file.stat().st_size
        if size != expected.bytes:
            raise CheckpointError(f"{file}: has {size} bytes, {expected.bytes} were saved; {WAY_OUT}")
        if _sha256(file) != expected.sha256:
            raise CheckpointError(f"{file}: is damaged, its content is not what was saved; {WAY_OUT}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing from the checkpoint; {WAY_OUT}") from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}; {WAY_OUT}") from error
    return file


def _place(path: Path, name: str) -> Path:
    """Where a file of the checkpoint lies: not moved up yet, or moved."""
    waiting = path / COMPLETE / name
    return waiting if waiting.is_file() else path / name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
