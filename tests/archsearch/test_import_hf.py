"""Models that transformers saved become checkpoints, through the command line."""

import json
import shutil

import pytest
import torch
from export_cases import CONV, GLA, GQA, SWA, TEXT, leftovers, save, spec_of, weights_of

from archsearch.budget import known_configs
from archsearch.checkpoint import Checkpoint
from archsearch.data.tokenizer import train_tokenizer
from archsearch.errors import InputError, ParityError, RunError
from archsearch.export import from_hf
from archsearch.export.from_hf import import_hf
from archsearch.export.to_hf import export_hf
from archsearch.hf import HfConfigError

PUBLISHED = next(config for name, _, config in known_configs() if name == "LFM2-350M")
SMALL = {"hidden_size": 64, "block_ff_dim": 384, "block_multiple_of": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """LFM2-350M's config, narrower: 16 layers, random weights in bf16 and several files, as published ones are."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    folder = tmp_path_factory.mktemp("published") / "LFM2-tiny"
    torch.manual_seed(0)
    config = Lfm2Config(**(PUBLISHED | SMALL | {"vocab_size": 300}))
    Lfm2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "tokenizer.json").write_text(train_tokenizer([TEXT], 280).to_json())
    return folder


def test_a_published_config_with_weights_becomes_a_checkpoint(published, tmp_path, call):
    ended = call("import", published, "--out", tmp_path / "checkpoint", "--json")
    assert ended.status == 0, ended.err
    assert ended.document["parity"]["relative_error"] < 1e-5
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    assert checkpoint.spec.name == "LFM2-tiny"
    assert checkpoint.spec.spec_id == ended.document["spec_id"]
    assert checkpoint.spec.pattern == "conv3 x2, gqa2, conv3 x2, gqa2, conv3 x2, gqa2, conv3, gqa2, conv3, gqa2, conv3, gqa2, conv3"
    assert {block.ffn.intermediate_size for block in checkpoint.spec.layers} == {256}
    assert len(list(published.glob("*.safetensors"))) > 1


def test_what_was_imported_can_be_exported_and_gives_the_same_tokens(published, tmp_path):
    from transformers import AutoModelForCausalLM

    import_hf(published, tmp_path / "checkpoint")
    export_hf(tmp_path / "checkpoint", tmp_path / "out")
    prompt = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(0))
    texts = []
    for folder in (published, tmp_path / "out"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None
        texts.append(model.generate(prompt, max_new_tokens=64, do_sample=False, pad_token_id=0).tolist())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("operators", [(CONV, GQA), (CONV, SWA, GQA), (CONV, GLA, SWA)], ids=["lfm2", "lfm3", "own class"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_our_exports_come_back_to_the_bit(tmp_path, operators, tied):
    spec = spec_of(*operators, tie_embeddings=tied)
    export_hf(save(tmp_path / "checkpoint", spec), tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "back", name="test")
    back = Checkpoint.open(tmp_path / "back")
    assert back.spec == spec
    expected = weights_of(spec)
    found = back.weights()
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_code_in_the_folder_is_not_run(tmp_path):
    export_hf(save(tmp_path / "checkpoint", spec_of(CONV, GLA)), tmp_path / "out")
    (tmp_path / "out" / "modeling_archsearch.py").write_text("raise SystemExit('this ran')\n")
    assert import_hf(tmp_path / "out", tmp_path / "back").holds


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: no such file; name one with --tokenizer"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[0].unlink(), r"safetensors: no such file"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[0].write_bytes(b"x"), r"is no readable safetensors file"),
    ],
    ids=["no config", "half a config", "no tokenizer", "no weights", "damaged weights"],
)
def test_what_is_missing_or_damaged_is_named(published, tmp_path, call, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    damage(folder)
    ended = call("import", folder, "--out", tmp_path / "checkpoint")
    assert ended.status == 2
    import re

    assert re.search(message, ended.error)
    assert leftovers(tmp_path) == ["model"]


def config_with(published, folder, **changes):
    shutil.copytree(published, folder)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | changes))
    return folder


def test_weights_that_do_not_fit_the_config_are_named(published, tmp_path):
    with pytest.raises(InputError, match=r"feed_forward\.w1\.weight: has the shape \(256, 64\), the config says \(128, 64\)"):
        import_hf(config_with(published, tmp_path / "narrow", intermediate_size=192, block_ff_dim=192), tmp_path / "out")
    kinds = ["full_attention"] * 16
    with pytest.raises(InputError, match=r"conv\.conv\.weight: is no weight of gqa2 x16"):
        import_hf(config_with(published, tmp_path / "other", layer_types=kinds), tmp_path / "out")
    assert leftovers(tmp_path) == ["narrow", "other"]


def test_other_models_are_refused_with_the_reason(published, tmp_path):
    with pytest.raises(HfConfigError, match="model_type: 'llama' is not"):
        import_hf(config_with(published, tmp_path / "llama", model_type="llama"), tmp_path / "out")
    with pytest.raises(HfConfigError, match="conv_bias: a spec has no biases"):
        import_hf(config_with(published, tmp_path / "bias", conv_bias=True), tmp_path / "out")


def test_a_checkpoint_that_computes_something_else_is_not_made(published, tmp_path, monkeypatch):
    right = from_hf._weights

    def damaged(folder, spec):
        weights = right(folder, spec)
        return weights | {"layers.2.ffn.w1.weight": weights["layers.2.ffn.w3.weight"]}

    monkeypatch.setattr(from_hf, "_weights", damaged)
    with pytest.raises(ParityError, match="transformers computes something else than LFM2-tiny in torch"):
        import_hf(published, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_a_folder_with_something_in_it_is_left_alone(published, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; choose another --out"):
        import_hf(published, tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(published, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(RunError, match=r"out: cannot be written: I/O error: No space left on device \(os error 28\); free some space$"):
        import_hf(published, tmp_path / "out")
    assert leftovers(tmp_path) == []
