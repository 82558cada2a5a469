"""Several sources: weights, their order, splits that do not leak, tokens that are made once."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WORDS
from trainings import SETTINGS

from archsearch.checkpoint import Checkpoint
from archsearch.data import MixedBatches, Preparing, Source, TokenStream, open_corpus, parse_sources, prepare, shards
from archsearch.data.batches import ROUND, mixed
from archsearch.errors import CheckpointError, FileFormatError, InputError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from archsearch.train import Evaluated, Step, read_metrics, train
from archsearch.train.evaluate import evaluate
from archsearch.train.planning import make_plan


def lines(first: int, count: int, words: list[str] = WORDS) -> list[str]:
    rng = np.random.default_rng(first)
    return [" ".join(rng.choice(words, size=60)) + f" {first + i}.\n" for i in range(count)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three files of 60 documents each; the last ten of the first are the first ten of the second."""
    folder = tmp_path_factory.mktemp("sources")
    first, second = lines(0, 60), lines(1000, 50)
    a, b, c = folder / "a.jsonl", folder / "b.parquet", folder / "c"
    a.write_text("".join(json.dumps({"text": text}) + "\n" for text in first))
    pq.write_table(pa.table({"text": first[50:] + second}), b)
    c.mkdir()
    for i, text in enumerate(lines(2000, 60, ["un", "deux", "trois", "chat", "chien"])):
        (c / f"{i:02}.txt").write_text(text)
    return {"a": a, "b": b, "c": c}


# --- what --data says -----------------------------------------------------------------------------------------------


def test_a_source_and_its_weight(tmp_path: Path) -> None:
    assert Source.parse("notes") == Source(str(Path("notes").absolute()))
    assert Source.parse(tmp_path / "a.jsonl:0.7") == Source(str(tmp_path / "a.jsonl"), 0.7)
    assert Source.parse("hf:owner/name?split=test") == Source("hf:owner/name?split=test")
    assert Source.parse("hf:owner/name:2") == Source("hf:owner/name", 2.0)
    assert Source.parse(tmp_path / "log:5.txt") == Source(str(tmp_path / "log:5.txt")), "no number, so it belongs to the name"
    (tmp_path / "2026:11").write_text("x")
    assert Source.parse(tmp_path / "2026:11") == Source(str(tmp_path / "2026:11")), "it exists"
    assert Source.parse(tmp_path / "2026:11:3") == Source(str(tmp_path / "2026:11"), 3.0)
    for text in ("a:0.1", "hf:x/y?split=test:3", "b"):
        assert Source.parse(str(Source.parse(text))) == Source.parse(text)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a:0", "b:0"], "the weights sum to 0; give at least one source a weight above 0"),
        (["a:1", "b"], "b: has no weight while .*a:1.0 has one; give every source a weight"),
        (["a:-1"], "a:-1: a weight must be a number, 0 or more, got -1"),
        (["a:nan"], "must be a number, 0 or more, got nan"),
        (["a:1", "a:2"], "a: given twice"),
    ],
)
def test_weights_that_make_no_sense(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sources(texts)


def test_bad_sources_are_named_beside_good_ones(sources: dict[str, Path], tmp_path: Path) -> None:
    good = sources["a"]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty\.jsonl: 0 bytes of distinct text"):
        open_corpus([good, tmp_path / "empty.jsonl"])
    (tmp_path / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    with pytest.raises(FileFormatError, match=r"broken\.jsonl:2: is not valid JSON"):
        open_corpus([f"{good}:1", f"{tmp_path / 'broken.jsonl'}:1"])
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "other.parquet")
    with pytest.raises(FileFormatError, match=r"other\.parquet: text: no such column; the file has 'body', 'n'"):
        open_corpus([good, tmp_path / "other.parquet"])
    (tmp_path / "copy.jsonl").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"copy\.jsonl: holds nothing that an earlier source does not hold"):
        open_corpus([f"{good}:1", f"{tmp_path / 'copy.jsonl'}:1"])
    assert len(open_corpus([good, tmp_path / "copy.jsonl"]).parts) == 1, "without weights it makes no difference"


# --- splits ---------------------------------------------------------------------------------------------------------


def test_no_text_is_in_two_sources_or_two_splits(sources: dict[str, Path]) -> None:
    corpus = open_corpus([f"{sources['a']}:1", f"{sources['b']}:1"])
    seen = Counter(document.text for _, document in corpus.by_part())
    assert set(seen.values()) == {1}
    assert len(seen) == 110, "what both hold is in the first one only"
    assert [part.documents for part in corpus.parts] == [60, 50]
    for part in corpus.parts:
        splits = Counter(part.is_held_out(document) for own, document in corpus.by_part() if own is part)
        assert splits[True] >= 1
        assert splits[False] >= 40


def test_a_text_that_one_source_holds_whole_and_another_in_pieces_does_not_leak(tmp_path: Path) -> None:
    """The second source is one long text, which is cut; the same text is a document of the first."""
    long = "".join(lines(0, 40))
    whole, book = tmp_path / "whole.jsonl", tmp_path / "book.txt"
    whole.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*lines(5000, 200), long]))
    book.write_text(long)
    corpus = open_corpus([whole, book])
    assert [part.name for part in corpus.parts] == [str(whole)]
    reverse = open_corpus([book, whole])
    assert reverse.parts[0].piece_bytes > 0
    training = "".join(document.text for document in reverse.training())
    for document in reverse.held_out():
        assert document.text not in training


# --- order ----------------------------------------------------------------------------------------------------------


def streams() -> list[np.ndarray[Any, Any]]:
    """Three streams whose tokens tell where they are from."""
    return [np.arange(part * 10_000, part * 10_000 + 3000, dtype=np.uint16) for part in range(3)]


def test_windows_come_by_weight_and_every_stretch_is_mixed() -> None:
    batches = mixed(streams(), "abc", [0.7, 0.0, 0.3], sequence=10, batch=4, seed=1)
    windows = np.concatenate([batches.at(step) for step in range(ROUND // 4)])
    assert (np.diff(windows, axis=1) == 1).all(), "a window is a run of one stream"
    part = windows[:, 0] // 10_000
    assert Counter(part.tolist()) == {0: 700, 2: 300}
    for first in range(0, ROUND - 40, 40):
        assert Counter(part[first : first + 40].tolist())[0] == pytest.approx(28, abs=2)
    small = windows[part == 2][:299, :-1]
    assert len(np.unique(small)) == 299 * 10, "no token twice in an epoch of a source"


def test_the_order_follows_from_seed_and_step_alone() -> None:
    one, two = (mixed(streams(), "abc", [5, 3, 2], 10, 4, seed=7) for _ in range(2))
    assert all(np.array_equal(one.at(step), two.at(step)) for step in (0, 900, 13, 250))
    assert not np.array_equal(mixed(streams(), "abc", [5, 3, 2], 10, 4, seed=8).at(0), one.at(0))
    later = np.concatenate([one.at(step) for step in range(250, 500)])[:, 0] // 10_000
    assert Counter(later.tolist()) == {0: 500, 1: 300, 2: 200}, "every round has its shares"


def test_shares_are_rounded_to_a_thousandth() -> None:
    assert mixed(streams(), "abc", [1, 1, 1], 10, 4, 0).counts == (334, 333, 333)
    with pytest.raises(InputError, match="less than 1/1000 of their sum is too small"):
        mixed(streams(), "abc", [1, 1, 1e-4], 10, 4, 0)
    with pytest.raises(InputError, match="b: only 3000 tokens of training text, too few for sequences of 2000"):
        mixed(streams(), "bca", [1, 1, 1], 2000, 4, 0)


def test_a_stream_of_shards_reads_as_one() -> None:
    whole = np.arange(100, dtype=np.uint16)
    stream = TokenStream([whole[:7], whole[7:7], whole[7:50], whole[50:]], np.uint16)
    assert len(stream) == 100
    for start, stop in ((0, 100), (3, 9), (7, 50), (6, 51), (99, 100), (50, 50), (90, 200)):
        assert np.array_equal(stream[start:stop], whole[start:stop])
        assert stream[start:stop].dtype == np.uint16
    assert np.array_equal(np.asarray(stream), whole)
    assert len(TokenStream([], np.uint32)[0:5]) == 0


# --- tokens on disk -------------------------------------------------------------------------------------------------


def test_an_interrupted_preparation_goes_on(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each shard in turn: what was written is not tokenised again, and the tokens are those of one go."""
    corpus = open_corpus([sources["a"], sources["b"]])
    one_shard = prepare(corpus, 300, cache_dir=tmp_path / "one")
    assert len(one_shard.parts[0].training.shards) == 1
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    told: list[Preparing] = []
    monkeypatch.setattr("archsearch.data.progress.Ticker.EVERY_S", 0.0)
    whole = prepare(corpus, 300, cache_dir=tmp_path / "whole", progress=told.append)
    assert {event.stage for event in told} == {"tokenizer", "tokenising"}
    assert told[-1].done == told[-1].total == corpus.text_bytes
    assert len(whole.parts[0].training.shards) > 3

    class Killed(BaseException):
        pass

    encoded, write, documents = shards._encoded, shards.write_atomic, Counter[str]()

    def counted(some: Any, tokenizer: Any) -> Any:
        for document, ids in encoded(some, tokenizer):
            documents[document.text] += 1
            yield document, ids

    def killing(path: Path, content: str | bytes) -> None:
        write(path, content)
        if path.name == shards.META:
            raise Killed

    monkeypatch.setattr(shards, "_encoded", counted)
    monkeypatch.setattr(shards, "write_atomic", killing)
    for _ in range(40):
        try:
            again = prepare(corpus, 300, tokenizer=whole.tokenizer, cache_dir=tmp_path / "killed")
            break
        except Killed:
            continue
    assert set(documents.values()) == {1}
    assert again.fingerprint == whole.fingerprint
    for data in (again, whole):
        for one, other in zip(data.parts, one_shard.parts, strict=True):
            assert np.array_equal(one.training, other.training)
            assert np.array_equal(one.held_out, other.held_out)
            assert (one.training_bytes, one.held_out_bytes) == (other.training_bytes, other.held_out_bytes)


def test_each_source_has_its_own_tokens(sources: dict[str, Path], tmp_path: Path) -> None:
    corpus = open_corpus([f"{sources['a']}:3", f"{sources['c']}:1"])
    data = prepare(corpus, 300, cache_dir=tmp_path)
    end = data.tokenizer.end_of_document
    for part, tokens in zip(corpus.parts, data.parts, strict=True):
        for stream, held_out in ((tokens.training, False), (tokens.held_out, True)):
            ids = np.asarray(stream)
            ends = np.flatnonzero(ids == end)
            found = [data.tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise(ends)]
            assert found == [d.text for own, d in corpus.by_part() if own is part and part.is_held_out(d) == held_out]
    assert isinstance(data.batches(32, 4), MixedBatches)
    other = prepare(open_corpus([f"{sources['a']}:1", f"{sources['c']}:1"]), 300, tokenizer=data.tokenizer, cache_dir=tmp_path)
    assert other.fingerprint != data.fingerprint, "other shares are another training"


# --- training -------------------------------------------------------------------------------------------------------


def test_a_mixture_trains_and_resumes_to_the_same_weights(tiny_spec: ArchSpec, sources: dict[str, Path], tmp_path: Path) -> None:
    texts, options = [f"{sources['a']}:0.7", f"{sources['c']}:0.3"], {"settings": SETTINGS, "cache_dir": tmp_path / "cache"}
    list(train(tiny_spec, texts, tmp_path / "whole", **options))
    for event in (events := train(tiny_spec, texts, tmp_path / "out", **options)):
        if isinstance(event, Step) and event.step == 5:
            events.close()  # type: ignore[attr-defined]
            break
    with pytest.raises(CheckpointError, match="was trained on other text"):
        list(train(tiny_spec, [texts[0], f"{sources['c']}:0.31"], tmp_path / "out", resume=True, cache_dir=tmp_path / "cache"))
    events = list(train(tiny_spec, (), tmp_path / "out", resume=True, cache_dir=tmp_path / "cache"))
    one, other = Checkpoint.open(tmp_path / "whole").weights(), Checkpoint.open(tmp_path / "out").weights()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []
    losses = [[row["loss"] for row in read_metrics(tmp_path / out) if row["event"] == "step"] for out in ("whole", "out")]
    assert losses[0] == losses[1]
    last = next(event for event in reversed(events) if isinstance(event, Evaluated))
    assert set(last.held_out.sources) == {str(sources["a"]), str(sources["c"])}


def test_the_held_out_loss_of_sources_adds_up(tiny_spec: ArchSpec, sources: dict[str, Path], tmp_path: Path) -> None:
    corpus = open_corpus([f"{sources['a']}:1", f"{sources['c']}:3"])
    data = prepare(corpus, 300, cache_dir=tmp_path)
    plan = replace(make_plan(tiny_spec, data, SETTINGS), eval_tokens=10**9)
    model = LanguageModel(tiny_spec)
    whole = evaluate(model, data, plan)
    alone = [evaluate(model, replace(data, parts=(part,)), plan) for part in data.parts]
    assert list(whole.sources.values()) == [part.bits_per_byte for part in alone]
    assert whole.tokens == sum(part.tokens for part in alone)
    bits = sum(part.bits_per_byte * part.text_bytes for part in alone)
    assert whole.bits_per_byte == pytest.approx(bits / whole.text_bytes)
    assert alone[0].sources == {}
