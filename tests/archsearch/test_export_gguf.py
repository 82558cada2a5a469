"""GGUF files run in llama.cpp itself: the same logits and tokens as torch, or nothing at all."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from export_cases import CONV, GLA, GQA, SWA, TEXT, leftovers, save, spec_of, weights_of

from archsearch.data.tokenizer import Tokenizer, train_tokenizer
from archsearch.errors import InputError, NoCounterpartError, ParityError, RunError
from archsearch.export import MANIFEST, export, to_gguf
from archsearch.export.gguf_tokenizer import plain_token, tokenizer_reasons
from archsearch.export.llama import LlamaDecoder
from archsearch.export.to_gguf import as_stored, export_gguf, gguf_layout, write_gguf
from archsearch.parity import build, torch_logits
from archsearch.spec import ArchSpec

CONV7 = CONV | {"kernel_size": 7}
MQA = GQA | {"kv_heads": 1}
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="needs gguf and xllamacpp: pip install 'archsearch[gguf]'",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain") / "checkpoint", spec_of(CONV, GQA, CONV))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    return save(tmp_path_factory.mktemp("windowed") / "checkpoint", spec_of(CONV7, SWA, CONV7, SWA, norm_eps=1e-6, rope_theta=1e4))


@pytest.mark.parametrize(
    ("operators", "overrides", "architecture"),
    [
        ((CONV, GQA, CONV), {}, "lfm2"),
        ((CONV7, GQA, MQA), {"tie_embeddings": False, "norm_eps": 1e-3, "rope_theta": 1e4}, "lfm2"),
        ((CONV, SWA, SWA), {}, "lfm2"),
        ((GQA | {"head_dim": 32},) * 2, {}, "qwen3"),
    ],
    ids=["conv+gqa", "kv heads by layer", "conv+swa", "attention"],
)
def test_llama_cpp_continues_with_the_tokens_that_torch_does(tmp_path, operators, overrides, architecture):
    spec = spec_of(*operators, **overrides)
    assert gguf_layout(spec).architecture == architecture
    checkpoint = save(tmp_path / "checkpoint", spec)
    report = export_gguf(checkpoint, tmp_path / "out", "f32", max_context=512)
    assert (report.prompt_tokens, report.decoded_tokens) == (64, 64)
    assert report.relative_error < 1e-5
    assert report.greedy_agreement == 1
    prompt = torch.randint(spec.vocab_size, (80,), generator=torch.Generator().manual_seed(5))
    with LlamaDecoder(report.path / "model-f32.gguf", spec.vocab_size, 40) as decoder:
        decoder.start(144, evict=True)
        found = decoder.generate(prompt.tolist(), 64)
    logits = torch_logits(build(spec, weights_of(spec)), [*prompt.tolist(), *found], 79)[:-1]
    logits[:, 0] = -np.inf  # the end of a text, which llama.cpp is told not to choose
    assert found == logits.argmax(-1).tolist()
    assert leftovers(tmp_path, "checkpoint") == ["out"]


@pytest.mark.parametrize("precision", ["f16", "q8_0", "q4_0"])
def test_rounded_files_differ_from_torch_by_rounding_alone(plain, tmp_path, precision):
    report = export(plain, tmp_path / "out", "gguf", precision=precision, max_context=256)
    assert 0.5 < report.relative_error / report.activation_rounding < 1.5
    assert report.quality.kl_nats > 0
    manifest = json.loads((report.path / MANIFEST).read_text())
    assert manifest["precision"] == precision
    assert set(manifest["files"]) == {f"model-{precision}.gguf", "spec.toml", "tokenizer.json"}


def test_what_the_file_says(plain, tmp_path):
    from gguf import GGUFReader

    export_gguf(plain, tmp_path / "out", "q4_0", max_context=256)
    reader = GGUFReader(tmp_path / "out" / "model-q4_0.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "lfm2"
    assert fields["lfm2.context_length"] == 256
    assert list(fields["lfm2.attention.head_count_kv"]) == [0, 2, 0]
    assert fields["tokenizer.ggml.pre"] == "lfm2"
    assert len(fields["tokenizer.ggml.tokens"]) == 300
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == kinds["blk.1.attn_q.weight"] == kinds["blk.0.shortconv.in_proj.weight"] == "Q4_0"
    assert kinds["blk.0.shortconv.conv.weight"] == kinds["token_embd_norm.weight"] == "F32"


def reversed_taps(spec, weights):
    return spec, weights | {"layers.0.operator.conv.weight": weights["layers.0.operator.conv.weight"][..., ::-1].copy()}


def other_rope(spec, weights):
    return ArchSpec.from_dict(spec.to_dict() | {"rope_theta": 1e6}), weights


def wider_window(spec, weights):
    data = spec.to_dict()
    for i in (1, 3):
        data["layers"][i]["operator"]["window"] += 1
    return ArchSpec.from_dict(data), weights


@pytest.mark.parametrize(
    ("damage", "precision"), [(reversed_taps, "f16"), (other_rope, "q4_0"), (wider_window, "f16"), (wider_window, "q4_0")]
)
def test_a_damaged_file_is_caught_and_removed(windowed, tmp_path, monkeypatch, damage, precision):
    def damaged(path, spec, weights, *rest):
        write_gguf(path, *damage(spec, weights), *rest)

    monkeypatch.setattr(to_gguf, "write_gguf", damaged)
    with pytest.raises(ParityError, match="test computes something else as gguf, so nothing was written: logits differ"):
        export_gguf(windowed, tmp_path / "out", precision, max_context=256)
    assert leftovers(tmp_path) == []


def test_llama_cpp_ending_is_one_line_and_leaves_nothing(plain, tmp_path, monkeypatch):
    """Convolutions alone trip an assertion in llama.cpp, which ends the process that it runs in."""
    right = to_gguf.gguf_layout
    checkpoint = save(tmp_path / "checkpoint", spec_of(CONV, CONV))

    def careless(spec, *rest):
        try:
            return right(spec, *rest)
        except NoCounterpartError:
            return to_gguf.Layout(architecture="lfm2", intermediate_size=96, heads=0, kv_heads=(0, 0), head_dim=0, kernel_size=3, window=0)

    monkeypatch.setattr(to_gguf, "gguf_layout", careless)
    with pytest.raises(ParityError, match=r"model-f16\.gguf: llama\.cpp .*, so nothing was written: .*GGML_ASSERT"):
        export_gguf(checkpoint, tmp_path / "out", "f16", max_context=256)
    assert leftovers(tmp_path, "checkpoint") == []


def test_a_file_that_is_no_model_is_refused_by_llama_cpp(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing else")
    with LlamaDecoder(tmp_path / "model.gguf", 300, 40) as decoder, pytest.raises(ParityError, match=r"llama\.cpp cannot run it"):
        decoder.start(16)


def test_a_generate_that_goes_astray_is_caught(plain, tmp_path, monkeypatch):
    right = LlamaDecoder.generate
    monkeypatch.setattr(LlamaDecoder, "generate", lambda self, ids, count: right(self, ids, count)[::-1])
    with pytest.raises(ParityError, match=r"llama\.cpp generates other tokens than test from token"):
        export_gguf(plain, tmp_path / "out", "f16", max_context=256)
    assert leftovers(tmp_path) == []


def test_a_tokenizer_that_differs_is_caught(plain, tmp_path, monkeypatch):
    other = train_tokenizer(["zzzz yyyy zzzz yyyy def mean"], 280)
    right = to_gguf.check_tokenizer
    monkeypatch.setattr(to_gguf, "check_tokenizer", lambda decoder, _: right(decoder, other))
    with pytest.raises(ParityError, match=r"llama\.cpp's tokenizer gives other tokens"):
        export_gguf(plain, tmp_path / "out", "f16", max_context=256)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("operators", "field", "why"),
    [
        ((CONV, GLA), "layers.1.operator.kind", "no gla"),
        ((CONV, SWA, GQA), "layers.2.operator.kind", "in all attention layers or in none"),
        ((CONV, SWA, SWA | {"window": 16}), "layers.2.operator.window", "16 differs from layer 1's 8"),
        ((SWA, SWA), "layers.0.operator.kind", "no architecture with windows"),
        ((CONV, CONV), "layers", "no layer attends"),
        ((CONV, GQA | {"head_dim": 32}), "layers.1.operator.head_dim", "is not the hidden size"),
        ((CONV, CONV7, GQA), "layers.1.operator.kernel_size", "7 differs"),
        ((GQA, MQA), "layers.1.operator.kv_heads", "1 differs"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused_by_field(operators, field, why):
    with pytest.raises(NoCounterpartError) as caught:
        gguf_layout(spec_of(*operators))
    fields = dict(caught.value.reasons)
    assert field in fields
    assert why in fields[field]


def test_widths_that_differ_or_do_not_fill_a_block_are_refused():
    data = spec_of(CONV, GQA).to_dict()
    data["layers"][1]["ffn"]["intermediate_size"] = 120
    spec = ArchSpec.from_dict(data)
    with pytest.raises(NoCounterpartError, match=r"layers\.1\.ffn\.intermediate_size: 120 differs from layer 0's 96"):
        gguf_layout(spec)
    data["layers"][0]["ffn"]["intermediate_size"] = 120
    assert gguf_layout(ArchSpec.from_dict(data), "f16").intermediate_size == 120
    with pytest.raises(
        NoCounterpartError, match=r"120 channels are no whole blocks of 32, as q4_0 stores them; --precision f16 takes them"
    ):
        gguf_layout(ArchSpec.from_dict(data), "q4_0")


def tokenizer_with(**changes):
    from tokenizers import Tokenizer as Inner

    data = json.loads(train_tokenizer([TEXT], 280).to_json())
    data["model"] |= changes.pop("model", {})
    return Tokenizer(Inner.from_str(json.dumps(data | changes)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "tokenizer.normalizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "tokenizer.pre_tokenizer"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True, "trim_offsets": True}},
            "tokenizer.pre_tokenizer",
        ),
    ],
    ids=["normalizer", "whitespace", "prefix space"],
)
def test_tokenizers_that_llama_cpp_does_not_know_are_refused(changes, field):
    assert tokenizer_reasons(tokenizer_with()) == []
    assert [name for name, _ in tokenizer_reasons(tokenizer_with(**changes))] == [field]


def test_the_plain_token_is_a_letter():
    tokenizer = tokenizer_with()
    assert tokenizer.decode([plain_token(tokenizer)]).isalpha()


def test_wrong_usage_is_refused_before_anything_is_written(plain, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="precision: 'int4' is none of GGUF's f32, f16, q8_0, q4_0"):
        export(plain, tmp_path / "out", "gguf", precision="int4")
    with pytest.raises(InputError, match="max_context: 64 positions have no room"):
        export_gguf(plain, tmp_path / "out", max_context=64)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "xllamacpp" else found(name, *rest))
    with pytest.raises(RunError, match=r'xllamacpp is not installed; install with: pip install "archsearch\[gguf\]"'):
        export_gguf(plain, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_the_weights_that_are_compared_are_those_in_the_file(plain, tmp_path):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    spec = spec_of(CONV, GQA, CONV)
    write_gguf(tmp_path / "model.gguf", spec, weights_of(spec), "q4_0", None, 256)
    rounded = as_stored(spec, weights_of(spec), "q4_0")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    stored = tensors["blk.0.ffn_down.weight"]
    assert np.array_equal(dequantize(stored.data, stored.tensor_type), rounded["layers.0.ffn.w2.weight"])


def test_a_full_disk_is_one_line_and_leaves_nothing(plain, tmp_path, monkeypatch):
    """numpy, which writes the tensors, gives no error number."""
    from gguf import GGUFWriter

    def full(self, **_):
        raise OSError("27648 requested and 3232 written")

    monkeypatch.setattr(GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(RunError, match="out: cannot be written: No space left on device; free some space"):
        export_gguf(plain, tmp_path / "out", "f16", max_context=256)
    assert leftovers(tmp_path) == []
