"""What lies beside an ONNX export for onnxruntime-genai; and that it runs there, where it is installed."""

import json

import numpy as np
import pytest
from export_cases import CONV, GLA, GQA, SWA, leftovers, save, spec_of

from archsearch.checkpoint import Checkpoint
from archsearch.errors import ParityError
from archsearch.export import genai, to_onnx
from archsearch.export.genai import CONFIG, GenaiDecoder, genai_is_installed, genai_reasons, write_genai
from archsearch.export.to_onnx import OnnxDecoder, export_onnx
from operators.graph import read_info
from operators.specs import PRECISIONS

with_genai = pytest.mark.skipif(not genai_is_installed(), reason="needs onnxruntime-genai: pip install 'archsearch[genai]'")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain") / "checkpoint", spec_of(CONV, GQA, CONV))


def test_the_config_names_what_the_graph_has(plain, tmp_path):
    folder = export_onnx(plain, tmp_path / "out", "int4", max_context=256).path
    config = json.loads((folder / CONFIG).read_text())["model"]
    decoder = config["decoder"]
    info = read_info(folder / decoder["filename"])
    names = {value.name for value in info.inputs} | {state.output for state in info.states}
    for i, kind in enumerate(decoder["layer_types"]):
        if kind == "conv":
            assert {decoder["inputs"]["past_conv_names"] % i, decoder["outputs"]["present_conv_names"] % i} <= names
        else:
            assert {f"past_key_values.{i}.key", f"present.{i}.value"} <= names
    key = next(value for value in info.inputs if value.name == "past_key_values.1.key")
    assert list(key.shape) == ["batch", decoder["num_key_value_heads"], "cache", decoder["head_size"]]
    assert config["context_length"] == 256
    assert config["vocab_size"] == info.vocab_size == 300
    assert config["eos_token_id"] == Checkpoint.open(plain).tokenizer().end_of_document
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}
    assert "For onnxruntime-genai the folder is complete" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("operators", "field"),
    [
        ((CONV, GLA), "layers.1.operator.kind"),
        ((CONV, SWA), "layers.1.operator.kind"),
        ((CONV, CONV | {"kernel_size": 5}), "layers.1.operator.kernel_size"),
        ((CONV, GQA, GQA | {"kv_heads": 1}), "layers.2.operator.kv_heads"),
        ((CONV, GQA, GQA | {"head_dim": 32}), "layers.2.operator.head_dim"),
    ],
)
def test_what_it_cannot_run_is_said_by_field(operators, field):
    assert [name for name, _ in genai_reasons(spec_of(*operators))] == [field]
    assert genai_reasons(spec_of(CONV, GQA)) == []


@with_genai
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("operators", [(CONV, GQA, CONV), (GQA, GQA), (CONV,)], ids=["hybrid", "attention", "conv"])
def test_it_generates_what_onnx_runtime_does(tmp_path, operators, precision):
    folder = export_onnx(save(tmp_path / "checkpoint", spec_of(*operators)), tmp_path / "out", precision, max_context=256).path
    genai_decoder, plain_decoder = GenaiDecoder(folder), OnnxDecoder(folder / "model.onnx")
    texts = []
    for decoder in (genai_decoder, plain_decoder):
        decoder.start(128)
        tokens = list(range(5, 69))
        logits = decoder.step(tokens)
        for _ in range(64):
            tokens.append(int(np.argmax(logits)))
            logits = decoder.step(tokens[-1:])
        texts.append(tokens)
    assert texts[0] == texts[1]


@with_genai
@pytest.mark.parametrize(
    "change", [{"conv_cache_size": 3, "layer_types": ["conv"] * 3}, {"num_key_value_heads": 4}, {"head_size": 8}], ids=str
)
def test_a_config_that_does_not_fit_the_graph_is_caught(plain, tmp_path, monkeypatch, change):
    def damaged(folder, *rest):
        write_genai(folder, *rest)
        config = json.loads((folder / CONFIG).read_text())
        config["model"]["decoder"] |= change
        (folder / CONFIG).write_text(json.dumps(config))

    monkeypatch.setattr(to_onnx, "write_genai", damaged)
    with pytest.raises(ParityError, match="onnxruntime-genai"):
        export_onnx(plain, tmp_path / "out", "fp32", max_context=256)
    assert leftovers(tmp_path) == []


def test_logits_that_differ_and_other_tokens_are_caught(plain, tmp_path, monkeypatch):
    """The gate itself, with a runtime that stands in for onnxruntime-genai."""
    folder = export_onnx(plain, tmp_path / "out", "fp32", max_context=256).path
    spec, tokenizer = Checkpoint.open(plain).spec, Checkpoint.open(plain).tokenizer()

    class StandIn(OnnxDecoder):
        scale, extra = 1.0, ()

        def __init__(self, folder):
            super().__init__(folder / "model.onnx")

        def step(self, ids):
            return super().step(ids) * self.scale

        def tokenize(self, text):
            return [*tokenizer.encode(text), *self.extra]

    monkeypatch.setattr(genai, "GenaiDecoder", StandIn)
    plain_decoder = OnnxDecoder(folder / "model.onnx")
    genai.check_genai(folder, plain_decoder, spec, tokenizer, 64, 64)
    StandIn.scale = 1.001
    with pytest.raises(ParityError, match="computes something else than ONNX Runtime"):
        genai.check_genai(folder, plain_decoder, spec, tokenizer, 64, 64)
    StandIn.scale, StandIn.extra = 1.0, (1,)
    with pytest.raises(ParityError, match="tokenizer gives other tokens"):
        genai.check_genai(folder, plain_decoder, spec, tokenizer, 64, 64)


def test_a_context_that_has_just_room_for_the_check(plain, tmp_path):
    assert export_onnx(plain, tmp_path / "out", "int8", max_context=128).holds
