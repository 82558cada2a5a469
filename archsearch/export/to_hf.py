"""A folder that transformers loads, and the checks that it computes there what it computes here.

transformers is optional and imported when it is needed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from archsearch.checkpoint import Checkpoint
from archsearch.data.tokenizer import Tokenizer
from archsearch.errors import ParityError, RunError
from archsearch.export.hf_tokenizer import write_hf_tokenizer
from archsearch.export.place import place
from archsearch.files import write_atomic
from archsearch.hf import MAX_POSITIONS, MODELING, hf_loader, lfm_reasons, to_hf_config, to_hf_name
from archsearch.parity import DECODE, PROMPT, SAMPLE, Logits, ParityReport, Weights, build, measure_parity
from archsearch.spec import ArchSpec

USAGE = """\
Load it with transformers: `AutoModelForCausalLM.from_pretrained("DIR"{trust})` and
`AutoTokenizer.from_pretrained("DIR"{trust})`.
"""
OWN_USAGE = """
The model is an `ArchsearchForCausalLM`, whose code lies in `{modeling}`; `trust_remote_code=True` lets transformers run it. It trains,
generates and is saved as any other. transformers has no class of its own for this layout: {reason}.
"""


def export_hf(checkpoint: Path | str, out: Path | str, *, held_out: Sequence[int] | None = None) -> ParityReport:
    """A folder for transformers' `AutoModelForCausalLM.from_pretrained`, in fp32: as an LFM2 or LFM3 model where these can say
    the layout, else as a class of our own with its code beside it.

    Raises:
        HfConfigError: the layout has an operator of another package.
        RunError: transformers is not installed; unchecked conversions go wrong in silence, so none is made.
        CheckpointError, InputError, ParityError: as `export_onnx`.
    """
    require_transformers()
    source = Checkpoint.open(checkpoint)
    spec, weights, tokenizer = source.spec, source.weights(), source.tokenizer()

    def fill(folder: Path) -> ParityReport:
        write_folder(folder, spec, weights, tokenizer)
        with HfDecoder(folder) as decoder:
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
                check_generate(decoder, spec, weights)
                check_tokenizer(folder, tokenizer)
        return report

    usage = USAGE.format(trust="")
    if reasons := lfm_reasons(spec):
        usage = USAGE.format(trust=", trust_remote_code=True") + OWN_USAGE.format(reason=": ".join(reasons[0]), modeling=MODELING)
    return place(source, Path(out), fill, usage)


def require_transformers() -> None:
    """
    Raises:
        RunError: transformers is not installed, or is too old to know LFM3.
    """
    try:
        from transformers import Lfm3ForCausalLM  # noqa: F401
    except ImportError as error:
        raise RunError(
            "a Hugging Face export is only handed out after transformers itself has run it; "
            'install it with: pip install "transformers>=5.20"'
        ) from error


def write_folder(folder: Path, spec: ArchSpec, weights: Weights, tokenizer: Tokenizer) -> None:
    """config.json, model.safetensors, tokenizer.json, tokenizer_config.json, unchecked.

    Raises:
        HfConfigError: the spec has no counterpart.
        OSError: the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    end = tokenizer.end_of_document
    config = to_hf_config(spec, bos_token_id=end, eos_token_id=end)
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    if config["model_type"] == "archsearch":
        shutil.copyfile(Path(__file__).with_name(MODELING), folder / MODELING)
    renamed = {to_hf_name(name, spec): value for name, value in weights.items()}
    try:
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(str(error)) from error
    write_hf_tokenizer(folder, tokenizer)


class HfDecoder:
    """An exported folder in transformers."""

    def __init__(self, folder: Path, *, ours: bool = True) -> None:
        """
        Args:
            ours: run the code in the folder, which we have just written; else that of this package, whatever lies there.

        Raises:
            ParityError: transformers finds weights missing, unknown or of another shape.
        """
        from transformers import AutoModelForCausalLM

        with _quiet():
            loader = AutoModelForCausalLM if ours else hf_loader(folder)
            loaded: Any = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, trust_remote_code=ours)
        self.model, loading = loaded
        wrong = {what: sorted(map(str, names)) for what, names in loading.items() if names}
        if wrong:
            raise ParityError(f"transformers does not take all weights of {folder.name}, so nothing was written: {wrong}")
        self.model.eval()
        self._cache: Any = None

    def __enter__(self) -> HfDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the copy of our class that transformers keeps under the name of the folder, which is about to be another."""
        module = sys.modules[type(self.model).__module__]
        if module.__name__.startswith("transformers_modules.") and module.__file__:
            shutil.rmtree(Path(module.__file__).parents[1], ignore_errors=True)

    def start(self, positions: int) -> None:
        self._cache = None

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Logits:
        with _quiet():
            output = self.model(torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        return output.logits[0, -1].numpy()  # type: ignore[no-any-return]


def check_generate(decoder: HfDecoder, spec: ArchSpec, weights: Weights) -> None:
    """transformers' `generate` and ours must continue a prompt with the same tokens.

    Raises:
        ParityError: they do not.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(spec.vocab_size, (1, PROMPT), generator=generator)
    expected = build(spec, weights).generate(prompt, DECODE)[0].tolist()
    decoder.model.generation_config.eos_token_id = None  # no token ends the text early: all DECODE tokens are compared
    with _quiet(), torch.inference_mode():
        mask = torch.ones_like(prompt)
        found = decoder.model.generate(prompt, attention_mask=mask, max_new_tokens=DECODE, do_sample=False, pad_token_id=0)[0].tolist()
    if found != expected:
        at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found)) - PROMPT
        raise ParityError(f"transformers generates other tokens than {spec.name} from token {at} on, so nothing was written")


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """
    Raises:
        ParityError: transformers' tokenizer splits the sample otherwise, or does not give it back.
    """
    from transformers import AutoTokenizer

    with _quiet():
        # It reads the config, whose code is ours; without the word for it transformers asks on the terminal.
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        found = loaded(SAMPLE, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if found != tokenizer.encode(SAMPLE) or loaded.decode(found) != SAMPLE:
        raise ParityError("transformers' tokenizer gives other tokens than the trained one, so nothing was written")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers advises on stderr about kernels that one could install; the user did not ask."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
