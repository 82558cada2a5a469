"""Exports run in the real runtimes: the same logits and tokens as torch, or nothing at all."""

import errno
import json
import sys

import numpy as np
import pytest
import torch
from export_cases import CONV, GLA, GQA, SWA, TEXT, leftovers, save, spec_of, weights_of

from archsearch.data.tokenizer import train_tokenizer
from archsearch.errors import CheckpointError, InputError, ParityError, RunError
from archsearch.export import MANIFEST, MAX_CONTEXT, export, to_hf, to_onnx
from archsearch.export.to_hf import export_hf
from archsearch.export.to_onnx import export_onnx, write_onnx
from archsearch.parity import build
from archsearch.spec import ArchSpec
from operators.graph import Runner, read_info
from operators.specs import PRECISIONS


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A checkpoint with all four operators."""
    return save(tmp_path_factory.mktemp("four") / "checkpoint", spec_of(CONV, SWA, GLA, GQA))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A checkpoint that is an LFM2 model."""
    return save(tmp_path_factory.mktemp("plain") / "checkpoint", spec_of(CONV, GQA, CONV))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_onnx_with_all_four_operators_holds_parity(four, tmp_path, precision):
    report = export_onnx(four, tmp_path / "out", precision)
    assert report.holds
    assert report.path == tmp_path / "out"
    assert report.decoded_tokens == 64
    assert sorted(path.name for path in report.path.iterdir()) == ["README.md", MANIFEST, "model.onnx", "spec.toml", "tokenizer.json"]
    assert ArchSpec.read(report.path / "spec.toml") == spec_of(CONV, SWA, GLA, GQA)
    assert (report.path / "tokenizer.json").read_bytes() == (four / "tokenizer.json").read_bytes()
    assert read_info(report.path / "model.onnx").max_context == MAX_CONTEXT
    manifest = json.loads((report.path / MANIFEST).read_text())
    assert manifest["parity"]["relative_error"] == report.relative_error
    assert manifest["step"] == 7
    assert set(manifest["files"]) == {"model.onnx", "spec.toml", "tokenizer.json"}
    assert "onnxruntime-genai cannot run this layout (layers.1.operator.kind" in (report.path / "README.md").read_text()
    assert len({path.stat().st_mode for path in report.path.iterdir()}) == 1
    assert leftovers(tmp_path) == ["out"]
    if precision == "fp32":
        assert report.relative_error < 1e-5
        assert report.greedy_agreement == 1
    else:
        # The estimate of what rounding activations costs is what makes the tolerance: it must be near the truth.
        assert 0.5 < report.relative_error / report.activation_rounding < 1.5
        assert report.quality.mean_logit_difference > 0


def test_int4_costs_more_than_int8(four, tmp_path):
    costs = {p: export_onnx(four, tmp_path / p, p).quality for p in ("fp32", "int8", "int4")}
    assert costs["fp32"].kl_nats < 1e-8 < costs["int8"].kl_nats < costs["int4"].kl_nats


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_onnx_generates_the_tokens_that_torch_generates(tmp_path, tied):
    spec = spec_of(CONV, SWA, GLA, GQA, tie_embeddings=tied)
    export_onnx(save(tmp_path / "checkpoint", spec), tmp_path / "out", "fp32", max_context=128)
    prompt = list(range(5, 45))
    runner = Runner(tmp_path / "out" / "model.onnx")
    runner.start(capacity=len(prompt) + 32)
    tokens, logits = list(prompt), runner.step(np.array([prompt]))
    for _ in range(32):
        tokens.append(int(logits[0, -1].argmax()))
        logits = runner.step(np.array([tokens[-1:]]))
    expected = build(spec, weights_of(spec)).generate(torch.tensor([prompt]), 32)
    assert tokens == expected[0].tolist()


def test_held_out_text_tells_the_cost_in_bits_per_byte(four, tmp_path):
    from archsearch.checkpoint import Checkpoint

    tokens = Checkpoint.open(four).tokenizer().encode(TEXT * 3)
    quality = export_onnx(four, tmp_path / "out", "int4", held_out=tokens).quality
    assert quality.text == "held-out text"
    assert quality.tokens == len(tokens)
    assert quality.bits_per_byte > 0
    assert quality.bits_per_byte != quality.bits_per_byte_fp32


def reversed_taps(spec, weights):
    return spec, weights | {"layers.0.operator.conv.weight": weights["layers.0.operator.conv.weight"][..., ::-1].copy()}


def other_rope(spec, weights):
    return ArchSpec.from_dict(spec.to_dict() | {"rope_theta": 1e4}), weights


def wider_window(spec, weights):
    data = spec.to_dict()
    data["layers"][1]["operator"]["window"] += 1
    return ArchSpec.from_dict(data), weights


def swapped_gate(spec, weights):
    gate, up = "layers.2.ffn.w1.weight", "layers.2.ffn.w3.weight"
    return spec, weights | {gate: weights[up], up: weights[gate]}


def no_gate_bias(spec, weights):
    return spec, weights | {"layers.2.operator.gk_proj.1.bias": np.zeros_like(weights["layers.2.operator.gk_proj.1.bias"])}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
@pytest.mark.parametrize("damage", [reversed_taps, other_rope, wider_window, swapped_gate, no_gate_bias], ids=lambda f: f.__name__)
def test_a_damaged_onnx_export_is_caught_and_removed(four, tmp_path, monkeypatch, damage, precision):
    monkeypatch.setattr(to_onnx, "write_onnx", lambda path, spec, weights, *rest: write_onnx(path, *damage(spec, weights), *rest))
    with pytest.raises(ParityError, match="test computes something else as onnx, so nothing was written: logits differ"):
        export_onnx(four, tmp_path / "out", precision)
    assert leftovers(tmp_path) == []


def test_a_graph_that_the_runtime_refuses_is_caught_and_removed(four, tmp_path, monkeypatch):
    import onnx

    def misspelt(path, *rest):
        write_onnx(path, *rest)
        model = onnx.load(path)
        model.graph.node[-1].op_type = "MatMulNBitz"
        onnx.save(model, path)

    monkeypatch.setattr(to_onnx, "write_onnx", misspelt)
    with pytest.raises(ParityError, match=r"model\.onnx: ONNX Runtime cannot run it, so nothing was written"):
        export_onnx(four, tmp_path / "out", "int4")
    assert leftovers(tmp_path) == []


def test_an_older_export_survives_a_failed_one_and_is_replaced_by_a_good_one(four, tmp_path, monkeypatch):
    export_onnx(four, tmp_path / "out", "int8")
    before = (tmp_path / "out" / "model.onnx").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(to_onnx, "write_onnx", lambda path, spec, weights, *rest: write_onnx(path, *other_rope(spec, weights), *rest))
        with pytest.raises(ParityError):
            export_onnx(four, tmp_path / "out", "int4")
    assert (tmp_path / "out" / "model.onnx").read_bytes() == before
    export_onnx(four, tmp_path / "out", "int4")
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["precision"] == "int4"
    assert leftovers(tmp_path) == ["out"]


def test_a_folder_with_other_things_is_left_alone(four, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", four):
        with pytest.raises(InputError, match="is no export and not empty; choose another --out"):
            export_onnx(four, out, "fp32")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_full_disk_is_one_line_and_leaves_nothing(four, tmp_path, monkeypatch):
    def full(path, *rest):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(to_onnx, "write_onnx", full)
    with pytest.raises(RunError, match="out: cannot be written: No space left on device; free some space"):
        export_onnx(four, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_an_interrupt_leaves_nothing(four, tmp_path, monkeypatch):
    def interrupted(path, *rest):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(to_onnx, "write_onnx", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(four, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_wrong_usage_is_refused_before_anything_is_written(four, tmp_path):
    with pytest.raises(InputError, match="precision: 'int3' is not one of fp32, int8, int4"):
        export_onnx(four, tmp_path / "out", "int3")
    with pytest.raises(InputError, match="max_context: 16 positions have no room"):
        export_onnx(four, tmp_path / "out", max_context=16)
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        export_onnx(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="no such format; known: onnx, hf, gguf"):
        export(four, tmp_path / "out", "tflite")
    with pytest.raises(InputError, match="max_context, precision: only for onnx and gguf"):
        export(four, tmp_path / "out", "hf", precision="int4", max_context=128)
    assert leftovers(tmp_path) == []


def test_export_dispatches(plain, tmp_path):
    assert export(plain, tmp_path / "onnx", "onnx", precision="fp32", max_context=None).format == "onnx"
    assert export(plain, tmp_path / "hf", "hf", precision=None).format == "hf"


@pytest.mark.parametrize(
    ("operators", "overrides", "architecture"),
    [
        ((CONV, GQA, CONV), {}, "Lfm2ForCausalLM"),
        ((CONV, GQA), {"tie_embeddings": False, "norm_eps": 1e-6, "rope_theta": 1e4}, "Lfm2ForCausalLM"),
        ((CONV | {"kernel_size": 7}, SWA, CONV | {"kernel_size": 7}, GQA), {}, "Lfm3ForCausalLM"),
        ((SWA, CONV, SWA), {"tie_embeddings": False}, "Lfm3ForCausalLM"),
        ((CONV, GQA | {"head_dim": 32}), {}, "Lfm3ForCausalLM"),
    ],
    ids=["conv+gqa", "untied", "conv+swa+full", "conv+swa", "free head size"],
)
def test_transformers_loads_the_export_and_computes_the_same(tmp_path, operators, overrides, architecture):
    from transformers import AutoModelForCausalLM

    spec = spec_of(*operators, **overrides)
    report = export_hf(save(tmp_path / "checkpoint", spec), tmp_path / "out")
    assert report.holds
    assert report.relative_error < 1e-5
    ours, theirs = build(spec, weights_of(spec)), AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == architecture
    ids = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, ours(ids)[0], atol=2e-4, rtol=0)
    theirs.generation_config.eos_token_id = None
    generated = theirs.generate(ids[:1], max_new_tokens=32, do_sample=False, pad_token_id=0)
    assert generated.tolist() == ours.generate(ids[:1], 32).tolist()
    assert leftovers(tmp_path, "checkpoint") == ["out"]


def test_transformers_tokenizer_splits_as_the_trained_one(plain, tmp_path):
    from transformers import AutoTokenizer

    from archsearch.data.tokenizer import read_tokenizer

    export_hf(plain, tmp_path / "out")
    ours, theirs = read_tokenizer(plain / "tokenizer.json"), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = TEXT + "naïve 42\t\n  x"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.eos_token_id == ours.end_of_document


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_theta": 1e4}, "computes something else as hf"),
        ({"norm_eps": 1e-2}, "computes something else as hf"),
        ({"layer_types": ["conv", "full_attention", "full_attention"]}, "does not take all weights"),
    ],
    ids=["rope", "eps", "layout"],
)
def test_a_damaged_config_is_caught_and_removed(plain, tmp_path, monkeypatch, change, message):
    right = to_hf.to_hf_config
    monkeypatch.setattr(to_hf, "to_hf_config", lambda *args, **options: right(*args, **options) | change)
    with pytest.raises(ParityError, match=message):
        export_hf(plain, tmp_path / "out")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("change", [{"sliding_window": 7}, {"sliding_window": 9}, {"use_attention_gate": True}], ids=str)
def test_a_damaged_lfm3_config_is_caught(tmp_path, monkeypatch, change):
    checkpoint = save(tmp_path / "checkpoint", spec_of(CONV, SWA, GQA))
    right = to_hf.to_hf_config
    monkeypatch.setattr(to_hf, "to_hf_config", lambda *args, **options: right(*args, **options) | change)
    with pytest.raises(ParityError):
        export_hf(checkpoint, tmp_path / "out")
    assert leftovers(tmp_path, "checkpoint") == []


def test_a_generate_that_goes_astray_is_caught(plain, tmp_path, monkeypatch):
    """Right logits are not enough: positions and caches that `generate` prepares itself may still be wrong."""
    from transformers import Lfm2ForCausalLM

    right = Lfm2ForCausalLM.generate
    monkeypatch.setattr(Lfm2ForCausalLM, "generate", lambda self, ids, **options: right(self, ids, **options).flip(1))
    with pytest.raises(ParityError, match="transformers generates other tokens than test from token"):
        export_hf(plain, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_tokenizer_that_differs_is_caught(plain, tmp_path, monkeypatch):
    other = train_tokenizer(["zzzz yyyy zzzz yyyy def mean"], 280)
    right = to_hf.check_tokenizer
    monkeypatch.setattr(to_hf, "check_tokenizer", lambda folder, _: right(folder, other))
    with pytest.raises(ParityError, match="transformers' tokenizer gives other tokens"):
        export_hf(plain, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_without_transformers_nothing_is_exported(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RunError, match=r'install it with: pip install "transformers>=5\.20"'):
        export_hf(plain, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_damaged_checkpoint_is_named(plain, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(plain, copy)
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"damaged!")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        export_onnx(copy, tmp_path / "out")
    assert leftovers(tmp_path, "copy") == []
