"""A teacher: the loss by hand, what is refused, the cache, and whether a student learns faster with one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainings
from torch.nn import functional as F

from archsearch.checkpoint import Checkpoint
from archsearch.data import TokenData, open_corpus, prepare, train_tokenizer
from archsearch.errors import CheckpointError, InputError
from archsearch.export import export
from archsearch.hf import MODELING
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train import Finished, Step, read_metrics, train
from archsearch.train.distillation import TopK, divergence, linear_distillation
from archsearch.train.planning import make_plan
from archsearch.train.teacher import Lessons, Teacher, open_teacher
from archsearch.train.trainer import Trainer
from operators.documents import Documents

transformers = pytest.importorskip("transformers")

SETTINGS = replace(trainings.SETTINGS, evaluations=2, eval_tokens=2048, sample_tokens=0)


# --- the loss -------------------------------------------------------------------------------------------------------


def two_models(tokens: int = 6, vocab: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, vocab, generator=generator, dtype=torch.float64) * 2, torch.randn(tokens, vocab, generator=generator)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_untempered_it_is_the_divergence_with_the_rest_as_one_token(k: int) -> None:
    teacher, student = two_models()
    p, q = teacher.softmax(-1), student.double().softmax(-1)
    for row, value in enumerate(divergence(student, TopK.of(teacher, k), 1.0)):
        top = teacher[row].topk(k).indices
        mine, theirs = (torch.cat([x[row][top], 1 - x[row][top].sum(0, keepdim=True)]) for x in (p, q))
        assert float(value) == pytest.approx(float((mine * (mine / theirs).log()).sum()), rel=1e-5, abs=1e-6)
    if k == 10:  # one token is left: nothing is taken together
        exact = F.kl_div(student.double().log_softmax(-1), p, reduction="none").sum(-1)
        torch.testing.assert_close(divergence(student, TopK.of(teacher, k), 1.0).double(), exact, rtol=1e-5, atol=1e-6)


def test_only_the_inner_term_is_tempered() -> None:
    teacher, student = two_models()
    top = TopK.of(teacher, 3)
    p_in = top.log_p_NK.exp().sum(-1).double()
    chosen = student.double().gather(1, top.ids_NK)
    q_in = student.double().softmax(-1).gather(1, top.ids_NK).sum(-1)
    decision = p_in * (p_in / q_in).log() + (1 - p_in) * ((1 - p_in) / (1 - q_in)).log()
    for temperature in (1.0, 2.0, 5.0):
        p = (top.log_p_NK.double() / temperature).softmax(-1)
        q = (chosen / temperature).softmax(-1)
        by_hand = decision + p_in * temperature**2 * (p * (p / q).log()).sum(-1)
        torch.testing.assert_close(divergence(student, top, temperature).double(), by_hand, rtol=1e-5, atol=1e-6)


def test_a_student_that_agrees_has_nothing_to_learn() -> None:
    teacher, _ = two_models()
    student = teacher.float().requires_grad_()
    loss = divergence(student, TopK.of(teacher, 4), 2.0).sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_a_teacher_that_is_certain_gives_no_nan() -> None:
    """All of the mass on one token: the rest underflows, on the teacher's side and on the student's."""
    certain = torch.zeros(2, 9)
    certain[:, 3] = 200.0
    for student in (torch.zeros(2, 9), certain.clone(), -certain):
        student.requires_grad_()
        loss = divergence(student, TopK.of(certain, 2), 1.0)
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    x, head = torch.randn(10, 8, generator=generator), torch.randn(20, 8, generator=generator)
    targets, top = torch.arange(10), TopK.of(torch.randn(10, 20, generator=generator), 5)
    results = []
    for chunk in (512, 3):
        monkeypatch.setattr("archsearch.train.distillation.CHUNK", chunk)
        x, head = x.detach().requires_grad_(), head.detach().requires_grad_()
        loss, cross_entropy = linear_distillation(x, head, targets, top, temperature=2.0, weight=0.3)
        loss.backward()
        results.append((loss.detach(), cross_entropy, x.grad, head.grad))
    torch.testing.assert_close(results[0], results[1])
    logits = (x @ head.T).detach()
    assert float(results[0][1]) == pytest.approx(float(F.cross_entropy(logits, targets)))
    whole = 0.7 * F.cross_entropy(logits, targets) + 0.3 * divergence(logits, top, 2.0).mean()
    assert float(results[0][0]) == pytest.approx(float(whole))


# --- a teacher ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random walks over 60 words, each with successors of its own: a text says where one walk went, a teacher where walks go."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), size=rng.integers(3, 6))) for _ in range(60)]
    chances = rng.dirichlet(np.full(len(words), 0.15), size=len(words))
    path = tmp_path_factory.mktemp("walks") / "walks.jsonl"
    with path.open("w") as file:
        for _ in range(200):
            walk = [int(rng.integers(len(words)))]
            for _ in range(149):
                walk.append(int(rng.choice(len(words), p=chances[walk[-1]])))
            file.write(json.dumps({"text": " ".join(words[word] for word in walk) + "\n"}) + "\n")
    return path


@pytest.fixture(scope="module")
def data(texts: Path, cache: Path) -> TokenData:
    return prepare(open_corpus([texts]), 300, cache_dir=cache)


def save_teacher(folder: Path, tokenizer_json: str, vocab_size: int, **options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=vocab_size, max_position_embeddings=64, tie_word_embeddings=True, **(sizes | options))
    model = transformers.LlamaForCausalLM(config)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def teacher(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that has read the training text for 250 updates."""
    folder = tmp_path_factory.mktemp("teacher") / "llama"
    model = save_teacher(folder, data.tokenizer.to_json(), 300)
    batches, optimizer = data.batches(32, 16, seed=99), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        ids = torch.from_numpy(batches.at(step))
        loss = F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_student_learns_faster_with_a_teacher(tiny_spec: ArchSpec, data: TokenData, teacher: Path, seed: int) -> None:
    """The same spec, initial weights, tokens in the same order and learning rate; the held-out loss of the text decides."""
    from archsearch.train.evaluate import evaluate

    losses = {}
    for name in (None, str(teacher)):
        settings = replace(SETTINGS, tokens=80 * 4 * 32, seed=seed, teacher=name, learning_rate=3e-3)
        plan = make_plan(tiny_spec, data, settings)
        trainer = Trainer(tiny_spec, data, plan)
        first = [trainer.update()[0] for _ in range(plan.steps)]
        losses[name] = evaluate(trainer.model, data, plan).nats_per_token
        assert first[0] == pytest.approx(np.log(300), rel=0.05), "the loss that is told is the cross-entropy of the text"
    assert losses[str(teacher)] < losses[None] - 0.05


def test_the_teacher_says_what_its_model_computes(data: TokenData, teacher: Path) -> None:
    opened = Teacher(str(teacher), data.tokenizer, "cpu")
    ids = torch.from_numpy(data.batches(32, 3, seed=0).at(0))[:, :-1]
    ids[1, 10] = ids[1, 20] = ids[2, 0] = data.tokenizer.end_of_document
    kept, log_p, log_rest = opened.look(ids, 5)
    with torch.no_grad():
        expected = opened.model(ids).logits.log_softmax(-1).flatten(0, 1)
    assert torch.equal(kept, expected.topk(5).indices)
    torch.testing.assert_close(log_p.float(), expected.topk(5).values, rtol=1e-3, atol=1e-3)
    masses = log_p.float().exp().sum(-1) + log_rest.float().exp()
    torch.testing.assert_close(masses, torch.ones(96), rtol=2e-3, atol=2e-3)
    apart, _, _ = opened.look(ids, 5, Documents.after(ids, data.tokenizer.end_of_document))
    with torch.no_grad():
        alone = opened.model(ids[1:2, 10:20]).logits[0].topk(5).indices
    assert torch.equal(apart.view(3, 32, 5)[1, 10:20], alone)
    assert torch.equal(apart.view(3, 32, 5)[1, :10], kept.view(3, 32, 5)[1, :10])


def test_a_training_with_a_teacher_resumes_exactly_and_may_use_a_cache(
    tiny_spec: ArchSpec, texts: Path, teacher: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, teacher=str(teacher), teacher_temperature=2.0, isolate_documents=True)
    list(train(tiny_spec, [texts], tmp_path / "whole", settings=settings, cache_dir=cache))
    cached = replace(settings, cache_teacher=True)
    events = train(tiny_spec, [texts], tmp_path / "out", settings=cached, cache_dir=tmp_path / "cache")
    for event in events:
        if isinstance(event, Step) and event.step == 5:
            break
    events.close()  # type: ignore[attr-defined]
    [*_, last] = train(tiny_spec, (), tmp_path / "out", resume=True, settings=cached, cache_dir=tmp_path / "cache")
    assert isinstance(last, Finished)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "look", lambda *_: pytest.fail("asked again"))
        list(train(tiny_spec, [texts], tmp_path / "again", settings=cached, cache_dir=tmp_path / "cache"))
    one = Checkpoint.open(tmp_path / "whole").weights()
    for out in ("out", "again"):
        other = Checkpoint.open(tmp_path / out).weights()
        assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []
    tokenizer = Checkpoint.open(tmp_path / "whole").tokenizer()
    assert tokenizer.to_json() == (teacher / "tokenizer.json").read_text(), "the teacher's, since no other was given"
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole") if row["event"] == "step"]
    assert len(losses) == 12


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_from_a_teacher_what_one_does(
    tiny_spec: ArchSpec, texts: Path, teacher: Path, tmp_path: Path, parallel: Any
) -> None:
    """One cache for both trainings: what one of two processes asked is not taken for what one alone did."""
    from ranks import Job, train_in

    settings = replace(SETTINGS, teacher=str(teacher), isolate_documents=True, cache_teacher=True, dtype="fp32")
    job = Job(spec=tiny_spec, texts=[str(texts)], out=tmp_path / "one", cache=tmp_path / "cache", settings=settings)
    two = replace(job, out=tmp_path / "two", settings=replace(settings, parallel=parallel))
    for outcome in (*train_in(1, job), *train_in(2, two)):
        assert outcome.error is None, outcome.trace
    losses = [[row["loss"] for row in read_metrics(out) if row["event"] == "step"] for out in (job.out, two.out)]
    assert losses[0] == pytest.approx(losses[1], rel=12 * 4 * 32 * 2.0**-24)


def test_a_damaged_lesson_is_asked_again(tiny_spec: ArchSpec, data: TokenData, teacher: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny_spec, data, replace(SETTINGS, teacher=str(teacher)))
    lessons = Lessons(open_teacher(str(teacher), data.tokenizer, "cpu"), plan, tmp_path)
    ids = torch.from_numpy(data.batches(32, 2).at(0))[:, :-1]
    first = lessons.of("0", ids, None)
    [file] = tmp_path.glob("*/*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    again = lessons.of("0", ids, None)
    assert torch.equal(first.log_p_NK, again.log_p_NK)
    assert torch.equal(lessons.of("0", ids, None).ids_NK, again.ids_NK)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_another_vocabulary_is_refused(tiny_spec: ArchSpec, texts: Path, teacher: Path, cache: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["some other text, with other words in it, so that other pairs are merged"] * 9, 290)
    with pytest.raises(InputError, match=r"the teacher's vocabulary is not the training's: 300 tokens against \d+, \d+ with another id"):
        settings = replace(SETTINGS, teacher=str(teacher))
        list(train(tiny_spec, [texts], tmp_path / "out", settings=settings, tokenizer=other, cache_dir=cache))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere/at-all"}, "nowhere/at-all: the teacher's tokenizer cannot be read"),
        ({"sequence": 65}, "sees 64 tokens at once, fewer than a sequence of 65; shorten --sequence"),
        ({"teacher_top_k": 300}, "teacher_top_k: must be below the vocabulary of 300, got 300"),
    ],
)
def test_a_teacher_that_does_not_fit(
    tiny_spec: ArchSpec,
    texts: Path,
    teacher: Path,
    cache: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = replace(SETTINGS, **({"teacher": str(teacher)} | changes))
    with pytest.raises(InputError, match=message):
        list(train(tiny_spec, [texts], tmp_path / "out", settings=settings, cache_dir=cache))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"teacher_weight": 0.0}, {"teacher_weight": 1.1}, {"teacher_temperature": 0.0}, {"teacher_top_k": 0}])
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="teacher_weight must be above 0 and at most 1"):
        replace(SETTINGS, teacher="x", **changes)


def test_a_teacher_that_changed_is_refused(tiny_spec: ArchSpec, texts: Path, data: TokenData, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    save_teacher(folder, data.tokenizer.to_json(), 300)
    events = train(tiny_spec, [texts], tmp_path / "out", settings=replace(SETTINGS, teacher=str(folder)), cache_dir=cache)
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(folder)
    open_teacher.cache_clear()
    with pytest.raises(CheckpointError, match=r"was begun with another teacher than .*changing is now"):
        list(train(tiny_spec, (), tmp_path / "out", resume=True, cache_dir=cache))


def test_without_a_teacher_nothing_changes(tiny_spec: ArchSpec, data: TokenData) -> None:
    plan = make_plan(tiny_spec, data, SETTINGS)
    trainer = Trainer(tiny_spec, data, plan)
    ids = torch.from_numpy(trainer.batches.at(0))
    expected = LanguageModel.loss(trainer.model, ids[:, :-1], ids[:, 1:])
    assert trainer.objective(ids[:, :-1], ids[:, 1:])[0].item() == expected.item()
    assert trainer.lessons is None


def test_our_own_export_teaches_and_the_code_beside_it_is_not_run(
    tiny_spec: ArchSpec, data: TokenData, texts: Path, cache: Path, tmp_path: Path
) -> None:
    *_, finished = train(tiny_spec, [texts], tmp_path / "checkpoint", settings=SETTINGS, tokenizer=data.tokenizer, cache_dir=cache)
    assert isinstance(finished, Finished)
    export(tmp_path / "checkpoint", tmp_path / "teacher", "hf")
    (tmp_path / "teacher" / MODELING).write_text("raise SystemExit('was run')")
    teacher = Teacher(str(tmp_path / "teacher"), data.tokenizer, "cpu")
    ids_BT = torch.from_numpy(data.batches(32, 2, 0).at(0))
    model = LanguageModel(tiny_spec)
    model.load_weights(Checkpoint.open(tmp_path / "checkpoint").weights())
    with torch.no_grad():
        expected = TopK.of(model(ids_BT)[0].flatten(0, 1), 4)
    ids_NK, log_p_NK, _ = teacher.look(ids_BT, 4)
    assert torch.equal(ids_NK, expected.ids_NK)
    torch.testing.assert_close(log_p_NK.float(), expected.log_p_NK, rtol=1e-3, atol=1e-3)
