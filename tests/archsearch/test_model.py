"""The language model: against the reference, step by step, its loss, its initialisation, and how it generates."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import archsearch.cross_entropy
from archsearch.model import INIT_STD, LanguageModel
from archsearch.spec import ArchSpec
from operators import reference
from operators.costs import model_parameters, model_weights
from operators.documents import Documents

CONV = {"kind": "short_conv", "kernel_size": 3}
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
SWA = {"kind": "swa", "heads": 4, "kv_heads": 1, "head_dim": 16, "window": 6}
GLA = {"kind": "gla", "heads": 2}
EVERY = (CONV, SWA, GLA, GQA)
LAYOUTS = {"conv and gqa": (CONV, CONV, GQA), "every operator": EVERY, "conv alone": (CONV,), "swa and gla": (SWA, GLA, SWA)}
VOCAB = 60


def spec_of(*operators, **fields):
    layers = [{"operator": operator, "ffn": {"intermediate_size": 40}} for operator in operators]
    return ArchSpec.from_dict({"name": "test", "hidden_size": 32, "vocab_size": VOCAB, "layers": layers} | fields)


def model_of(*operators, seed=0, spread=5.0, **fields):
    """A float64 model whose matrices are `spread` times as large as they start, so that every layer matters to the logits."""
    torch.manual_seed(seed)
    model = LanguageModel(spec_of(*operators, **fields)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_ids(batch, tokens, seed=0):
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def reference_logits(model, ids_BT):
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    return reference.model(model.spec.layers, model.spec.dims, weights, ids_BT.numpy())[0]


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_logits_equal_the_reference(layout, tie_embeddings):
    model = model_of(*layout, tie_embeddings=tie_embeddings, norm_eps=1e-3, rope_theta=500.0)
    ids_BT = random_ids(2, 75)
    logits_BTV, _ = model(ids_BT)
    assert logits_BTV.shape == (2, 75, VOCAB)
    assert_allclose(logits_BTV.detach(), reference_logits(model, ids_BT), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pieces", [(1,) * 20, (30, *(1,) * 5), (1, 65, 3)], ids=["step by step", "prefill then steps", "uneven"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_state_carries_the_sequence(layout, pieces):
    model, ids_BT = model_of(*layout), random_ids(3, sum(pieces))
    state, parts = None, []
    for part_BT in torch.split(ids_BT, pieces, dim=1):
        logits_BTV, state = model(part_BT, state)
        parts.append(logits_BTV.detach())
    assert_allclose(torch.cat(parts, dim=1), reference_logits(model, ids_BT), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_parameters_have_the_agreed_names_and_number(tie_embeddings):
    spec = spec_of(*EVERY, tie_embeddings=tie_embeddings)
    model = LanguageModel(spec)
    expected = model_weights(spec.layers, spec.dims, vocab_size=VOCAB, tie_embeddings=tie_embeddings)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {weight.name: weight.shape for weight in expected}
    parameters = model_parameters(spec.layers, spec.dims, vocab_size=VOCAB, tie_embeddings=tie_embeddings)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_initialisation_is_the_documented_one():
    torch.manual_seed(0)
    spec = spec_of(*EVERY, hidden_size=256, vocab_size=1000)
    model = LanguageModel(spec)
    scaled = INIT_STD / math.sqrt(2 * len(EVERY))
    seen = set()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        elif name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        elif parameter.ndim == 2:
            residual = name.endswith(("out_proj.weight", "o_proj.weight", "w2.weight"))
            seen.add(residual)
            error = 5 / math.sqrt(2 * parameter.numel())  # five standard errors of a standard deviation
            assert parameter.std().item() == pytest.approx(scaled if residual else INIT_STD, rel=error)
    assert seen == {True, False}
    loss = model.loss(torch.randint(1000, (4, 64)), torch.randint(1000, (4, 64))).item()
    assert loss == pytest.approx(math.log(1000), rel=0.02)  # an untrained model knows nothing, and is not sure of it


@pytest.mark.parametrize("chunk", [2048, 7, 1])
def test_loss_is_cross_entropy_with_its_gradients(chunk, monkeypatch):
    monkeypatch.setattr(archsearch.cross_entropy, "CHUNK", chunk)
    ids_BT, targets_BT = random_ids(2, 15), random_ids(2, 15, seed=1)
    targets_BT[0, :4] = -100
    model = model_of(CONV, GQA)
    gradients = []
    for compute in (
        lambda: F.cross_entropy(model(ids_BT)[0].flatten(0, 1).float(), targets_BT.flatten()),
        lambda: model.loss(ids_BT, targets_BT),
    ):
        model.zero_grad()
        loss = compute()
        loss.backward()
        gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, chunked in zip(*gradients, strict=True):
        assert_allclose(chunked, plain, rtol=1e-5, atol=1e-6)


def test_loss_without_targets_is_zero():
    targets_BT = torch.full((1, 5), -100)
    assert model_of(CONV).loss(random_ids(1, 5), targets_BT).item() == 0.0


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_loss_never_holds_all_logits(monkeypatch):
    """Forward and backward: no tensor is larger than a chunk's logits, of which there are 16. (The embedding is as large, here.)"""
    monkeypatch.setattr(archsearch.cross_entropy, "CHUNK", 32)
    torch.manual_seed(0)
    model = LanguageModel(spec_of(CONV, vocab_size=3000))
    ids_BT = random_ids(4, 128)
    with LargestTensor() as largest:
        model.loss(ids_BT, ids_BT).backward()
    assert largest.elements == 32 * 3000


SEPARATOR = 0
ONES = torch.ones(1, 1, dtype=torch.int64)


def packed(lengths, seed=0):
    """One row [1, T] of documents of these lengths, each beginning with the separator, and the documents themselves."""
    documents = [torch.cat([SEPARATOR * ONES, random_ids(1, n - 1, seed + n).clamp(min=1)], dim=1) for n in lengths]
    return torch.cat(documents, dim=1), documents


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_packed_documents_have_the_logits_that_they_have_alone(layout):
    model = model_of(*layout)
    row_BT, alone = packed((9, 1, 70, 30, 2))
    other_BT, more = packed((40, 72))
    ids_BT = torch.cat([row_BT, other_BT])
    together_BTV, _ = model(ids_BT, documents=Documents.after(ids_BT, SEPARATOR))
    for row, documents in ((0, alone), (1, more)):
        expected = np.concatenate([reference_logits(model, document_BT)[0] for document_BT in documents])
        assert_allclose(together_BTV[row].detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_neighbours_change_neither_logits_nor_gradients(layout):
    """To the last bit: the document in the middle, with other documents of other lengths around it."""
    found = []
    for before, after, seed in ((20, 30, 0), (20, 30, 1), (13, 37, 2)):
        model = model_of(*layout)
        row_BT, _ = packed((before, 40, after), seed)
        middle = slice(before, before + 40)
        row_BT[:, middle] = packed((40,), 7)[0]
        targets_BT = torch.full_like(row_BT, -100)
        targets_BT[:, middle] = random_ids(1, 40, 8)
        model.loss(row_BT, targets_BT, Documents.after(row_BT, SEPARATOR)).backward()
        logits_BTV, _ = model(row_BT, documents=Documents.after(row_BT, SEPARATOR))
        found.append([logits_BTV[:, middle].detach(), *(parameter.grad for parameter in model.parameters())])
    for one, same_places, other_places in zip(*found, strict=True):
        assert torch.equal(one, same_places)
        assert_allclose(one, other_places, rtol=1e-9, atol=1e-11)


def test_without_documents_neighbours_do_change_the_logits():
    """What the two tests above would miss if they could not see it."""
    model = model_of(CONV)
    row_BT, (_, middle_BT, _) = packed((20, 40, 30))
    leaking = model(row_BT)[0][0, 20:60] - model(middle_BT)[0][0]
    assert leaking[0].abs().max() > 1e-3


def test_greedy_generation_takes_the_most_likely_token():
    model, prompt_BT = model_of(*EVERY, tie_embeddings=False), random_ids(2, 5)
    ids_BT = model.generate(prompt_BT, 12)
    assert ids_BT.shape == (2, 17)
    assert torch.equal(ids_BT[:, :5], prompt_BT)
    logits_BTV = reference_logits(model, ids_BT)
    assert np.array_equal(logits_BTV[:, 4:-1].argmax(-1), ids_BT[:, 5:].numpy())
    assert len(ids_BT[:, 5:].unique()) > 3


def test_stream_yields_what_generate_returns():
    model, prompt_BT = model_of(CONV, GQA), random_ids(2, 3)
    columns = list(model.stream(prompt_BT, 6, temperature=1.0, top_k=8, seed=5))
    assert torch.equal(torch.stack(columns, dim=1), model.generate(prompt_BT, 6, temperature=1.0, top_k=8, seed=5)[:, 3:])


def test_sampling_repeats_with_its_seed_and_only_then():
    model, prompt_BT = model_of(CONV, GQA, spread=1.0), random_ids(1, 3)

    def sample(seed):
        return model.generate(prompt_BT, 20, temperature=1.0, seed=seed).tolist()

    before = torch.get_rng_state()
    assert sample(1) == sample(1) != sample(2)
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(1)
    assert model.generate(prompt_BT, 20, temperature=1.0, generator=generator).tolist() == sample(1)


def test_sampling_follows_the_softmax_of_the_top_k():
    """20,000 first tokens: every share lies within five standard errors of its probability."""
    model, draws, top_k, temperature = model_of(CONV), 20_000, 4, 0.7
    prompt_BT = random_ids(1, 3)
    scores = model(prompt_BT)[0][0, -1].detach().numpy() / temperature
    scores[scores < np.sort(scores)[-top_k]] = -np.inf
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    sampled = model.generate(prompt_BT.expand(draws, 3), 1, temperature=temperature, top_k=top_k, seed=0)[:, -1]
    shares = np.bincount(sampled.numpy(), minlength=VOCAB) / draws
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / draws)).all()
    assert (shares > 0).sum() == top_k


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 1), (0.0, 3), (1e-6, 1000)])
def test_limits_of_sampling_are_greedy(temperature, top_k):
    model, prompt_BT = model_of(CONV, SWA, tie_embeddings=False), random_ids(2, 4)
    assert torch.equal(model.generate(prompt_BT, 8, temperature=temperature, top_k=top_k, seed=0), model.generate(prompt_BT, 8))


def test_generating_nothing_and_from_nothing():
    model = model_of(CONV)
    assert torch.equal(model.generate(random_ids(2, 4), 0), random_ids(2, 4))
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(random_ids(2, 0), 3)


@pytest.mark.parametrize("tie_embeddings", [True, False], ids=["tied", "untied"])
def test_weights_travel_as_numpy(tie_embeddings):
    first, second = (model_of(*EVERY, seed=seed, tie_embeddings=tie_embeddings).float() for seed in (0, 1))
    weights = first.numpy_weights()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    second.load_weights(weights)
    ids_BT = random_ids(1, 9)
    assert torch.equal(first(ids_BT)[0], second(ids_BT)[0])
    with pytest.raises(RuntimeError, match="embedding_norm"):
        second.load_weights({name: array for name, array in weights.items() if "embedding_norm" not in name})


def test_trains_under_bfloat16_autocast():
    model, ids_BT = LanguageModel(spec_of(*EVERY)), random_ids(2, 70)
    plain = model.loss(ids_BT, ids_BT)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(ids_BT, ids_BT)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.01)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_learns_a_repeating_text():
    """Forty steps of AdamW on one sequence: a model whose parts are wired to its loss gets it nearly by heart."""
    torch.manual_seed(0)
    model = LanguageModel(spec_of(*EVERY))
    ids_BT = torch.arange(96).remainder(24)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = model.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert model.generate(ids_BT[:, :30], 10)[0, 30:].tolist() == [(30 + i) % 24 for i in range(10)]
