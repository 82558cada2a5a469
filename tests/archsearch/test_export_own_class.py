"""Layouts that transformers has no class for: ours, shipped with the weights, does what transformers' own do."""

import json
from pathlib import Path

import pytest
import torch
from export_cases import CONV, GLA, GQA, SWA, leftovers, save, spec_of, weights_of

from archsearch.errors import ParityError
from archsearch.export import MANIFEST, to_hf
from archsearch.export.to_hf import export_hf
from archsearch.parity import build
from archsearch.spec import ArchSpec

NARROW = SWA | {"window": 5, "heads": 8, "kv_heads": 1}
EVERYTHING = spec_of(CONV, SWA, GLA, GQA, CONV | {"kernel_size": 4}, NARROW)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    data = EVERYTHING.to_dict()
    data["layers"][3]["ffn"]["intermediate_size"] = 40
    spec = ArchSpec.from_dict(data)
    report = export_hf(save(folder / "checkpoint", spec), folder / "out")
    return report, build(spec, weights_of(spec))


@pytest.fixture
def model(exported):
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(exported[0].path, trust_remote_code=True).eval()
    loaded.generation_config.eos_token_id = None
    return loaded


def ids(batch, tokens, seed=0):
    return torch.randint(300, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def test_the_folder_and_what_was_checked(exported):
    report, _ = exported
    assert report.holds
    assert report.relative_error < 1e-5
    assert report.greedy_agreement == 1
    assert report.decoded_tokens == 64
    files = json.loads((report.path / MANIFEST).read_text())["files"]
    assert set(files) == {
        "config.json", "model.safetensors", "modeling_archsearch.py", "spec.toml", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    readme = (report.path / "README.md").read_text()
    assert "trust_remote_code=True" in readme
    assert "layers.2.operator.kind: gla has no layer type" in readme


def test_nothing_stays_in_the_cache_of_transformers(exported, tmp_path):
    from transformers.utils.hub import HF_MODULES_CACHE

    export_hf(save(tmp_path / "checkpoint", spec_of(GLA)), tmp_path / "unmistakable")
    assert not list(Path(HF_MODULES_CACHE).rglob("*unmistakable*"))


def test_nobody_is_asked_whether_our_own_code_may_run(tmp_path, monkeypatch):
    """On a terminal transformers asks, wherever it was not told beforehand; elsewhere it fails."""
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    assert export_hf(save(tmp_path / "checkpoint", spec_of(GLA)), tmp_path / "out").holds


def test_whole_sequences_and_generated_tokens_are_those_of_torch(model, exported):
    _, ours = exported
    with torch.inference_mode():
        assert torch.allclose(model(ids(2, 70)).logits, ours(ids(2, 70))[0], atol=2e-5, rtol=0)
    generated = model.generate(ids(1, 70), max_new_tokens=64, do_sample=False, pad_token_id=0)
    assert generated.tolist() == ours.generate(ids(1, 70), 64).tolist()


@pytest.mark.parametrize("operators", [(CONV, CONV), (GLA,), (SWA, SWA | {"window": 3})], ids=["conv", "gla", "windows"])
def test_layouts_without_full_attention_generate_too(tmp_path, operators):
    report = export_hf(save(tmp_path / "checkpoint", spec_of(*operators, tie_embeddings=False)), tmp_path / "out")
    assert report.greedy_agreement == 1


def test_padding_on_the_left_changes_nothing(model, exported):
    """As text of unequal length is batched for generation; in every operator."""
    _, ours = exported
    short, long = ids(1, 30), ids(1, 39, seed=1)
    padded = torch.cat([torch.cat([torch.full((1, 9), 7), short], dim=1), long])
    mask = torch.ones_like(padded)
    mask[0, :9] = 0
    found = model.generate(padded, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert found[0, 9:].tolist() == ours.generate(short, 20)[0].tolist()
    assert found[1].tolist() == ours.generate(long, 20)[0].tolist()


def test_padding_on_the_right_changes_nothing(model, exported):
    """As continuations are scored in batches."""
    _, ours = exported
    padded = torch.cat([ids(1, 30), torch.full((1, 9), 7)], dim=1)
    mask = (torch.arange(39) < 30).long()[None]
    with torch.inference_mode():
        assert torch.allclose(model(padded, attention_mask=mask).logits[:, :30], ours(ids(1, 30))[0], atol=2e-5, rtol=0)


def test_several_tokens_at_once_go_on_from_a_cache(model):
    with torch.inference_mode():
        whole = model(ids(2, 40)).logits
        first = model(ids(2, 40)[:, :17], use_cache=True)
        second = model(ids(2, 40)[:, 17:], past_key_values=first.past_key_values)
    assert torch.allclose(torch.cat([first.logits, second.logits], dim=1), whole, atol=2e-5, rtol=0)


def test_beam_search_reorders_every_state(model):
    """The best beam's score is what a pass over its whole text gives."""
    found = model.generate(
        ids(1, 20), num_beams=4, max_new_tokens=12, do_sample=False, pad_token_id=0, length_penalty=0.0,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    with torch.inference_mode():
        log_probabilities = model(found.sequences).logits.log_softmax(-1)
    new = found.sequences[0, 20:]
    assert float(log_probabilities[0, 19:-1].gather(1, new[:, None]).sum()) == pytest.approx(float(found.sequences_scores[0]), abs=1e-3)


def test_it_trains_with_the_gradients_of_torch_with_and_without_checkpointing(model, exported):
    _, ours = exported
    ours = build(ours.spec, ours.numpy_weights()).requires_grad_(True)
    batch = ids(2, 40)
    ours.loss(batch[:, :-1], batch[:, 1:]).backward()
    expected = ours.layers[2].operator.k_proj.weight.grad
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        output = model(batch, labels=batch)
        assert output.past_key_values is None
        output.loss.backward()
        found = model.model.layers[2].operator.k_proj.weight.grad
        assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()) + 1e-8, rtol=1e-3)


def test_what_transformers_saves_it_loads_again(model, exported, tmp_path):
    """As a fine-tuned model is saved: weights, config and the code."""
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_archsearch.py").read_text() == (exported[0].path / "modeling_archsearch.py").read_text()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    with torch.inference_mode():
        assert torch.equal(again(ids(1, 10)).logits, model(ids(1, 10)).logits)


def test_in_half_precision_states_stay_wide(exported):
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(exported[0].path, trust_remote_code=True, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        output = half(ids(1, 10), use_cache=True)
    assert output.logits.dtype == torch.bfloat16
    assert output.past_key_values.states[2][0].dtype == torch.float32


def test_a_foreign_cache_is_refused(model):
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="past_key_values: this model keeps its own kind of states"):
        model(ids(1, 4), past_key_values=DynamicCache())


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("age < (window or keys)", "age <= (window or keys)"),
        ("self.gate_normalizer = heads, gate_normalizer", "self.gate_normalizer = heads, gate_normalizer + 1"),
        ("(S,)", "(S * 0,)"),
        ("columns.shape[1] - before :", "columns.shape[1] - before - 1 : -1"),
    ],
    ids=["window", "gate", "state", "columns"],
)
def test_code_that_computes_something_else_is_caught(tmp_path, monkeypatch, was, becomes):
    right = to_hf.write_folder

    def damaged(folder, *rest):
        right(folder, *rest)
        path = folder / "modeling_archsearch.py"
        text = path.read_text()
        assert was in text
        path.write_text(text.replace(was, becomes))

    monkeypatch.setattr(to_hf, "write_folder", damaged)
    with pytest.raises(ParityError, match="test computes something else as hf"):
        export_hf(save(tmp_path / "checkpoint", EVERYTHING), tmp_path / "out")
    assert leftovers(tmp_path, "checkpoint") == []


def test_what_bench_says_of_other_exports(exported, tmp_path, call):
    assert "archsearch import makes a checkpoint of what transformers saved" in call("bench", exported[0].path).error
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x80")
    assert "is for llama.cpp, whose llama-bench times it" in call("bench", tmp_path / "model.gguf").error
