"""Readers, the held-out split, tokens that give the text back, and the order of batches."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.data import (
    Batches,
    Preparing,
    Tokenizer,
    default_corpus,
    open_corpus,
    prepare,
    read_source,
    read_tokenizer,
    train_tokenizer,
)
from archsearch.data import progress as ticking
from archsearch.data.corpus import Corpus
from archsearch.errors import FileFormatError, InputError


def write_texts(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:04}.txt").write_text(text)
    return folder


def sentences(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    words = ["the", "a", "red", "blue", "green", "cat", "dog", "sees", "hears", "finds", "loses", "one", "two"]
    return [" ".join(rng.choice(words, size=30)) + f" {i}.\n" for i in range(n)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(sentences(50), 300)


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["<|endoftext|>", "a\r\n\x00b", "\ufeff🙂é", "   "]))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
    assert tokenizer.end_of_document not in ids
    assert max(ids, default=0) < tokenizer.vocab_size <= 300


def test_tokenizer_survives_its_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    again = read_tokenizer(path, vocab_size=300)
    text = "the red cat <|endoftext|> sees 🙂"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.to_json() == tokenizer.to_json()
    with pytest.raises(FileFormatError, match=r"has \d+ tokens, the spec's vocab_size is 260"):
        read_tokenizer(path, vocab_size=260)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no tokenizer.json"),
        ('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', "decoder: must be ByteLevel"),
    ],
)
def test_a_file_that_is_no_byte_level_tokenizer(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=message):
        read_tokenizer(path)
    with pytest.raises(FileFormatError, match="no such file"):
        read_tokenizer(tmp_path / "none.json")


def test_a_tokenizer_without_end_of_document_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = json.loads(tokenizer.to_json())
    data["added_tokens"] = []
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match="end-of-document token"):
        read_tokenizer(path)


def test_the_smallest_vocabulary_is_bytes() -> None:
    tokenizer = train_tokenizer(["any text"], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode("héllo")) == 6
    with pytest.raises(InputError, match="at least 257"):
        train_tokenizer(["any text"], 256)


def test_sources_of_every_format_give_the_same_documents(tmp_path: Path) -> None:
    texts = sentences(5)
    folder = write_texts(tmp_path / "folder", texts)
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("\n\n".join(json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)) + "\n")
    parquet = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [*texts, None, ""], "id": range(7)}), parquet)
    for source in (folder, jsonl, parquet):
        assert [d.text for d in read_source(source)] == texts
    assert [d.name for d in read_source(jsonl)][:2] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert [d.text for d in read_source(folder / "0003.txt")] == [texts[3]]


def test_another_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"content": "x"}\n')
    assert [d.text for d in read_source(path, text_field="content")] == ["x"]


def test_a_folder_passes_over_what_is_hidden_or_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_texts(tmp_path / "folder", ["one", "two"])
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "deep").mkdir()
    (folder / "deep" / "b.py").write_text("three")
    assert [d.text for d in read_source(folder)] == ["one", "two", "three"]
    assert "latin.txt: is not UTF-8 text (byte 3)" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows\.jsonl:2: is not valid JSON"),
        ('"text"', r"rows\.jsonl:2: must be a JSON object"),
        ('{"body": "x"}', r"rows\.jsonl:2: text: missing; the line has 'body'"),
        ('{"text": 3}', r"rows\.jsonl:2: text: must be a string, got int"),
        (r'{"text": "\ud800"}', r"rows\.jsonl:2: text: holds half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(FileFormatError, match=message):
        open_corpus([path])


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        open_corpus([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no text in this folder"):
        open_corpus([tmp_path / "empty"])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FileFormatError, match=r"latin\.txt: is not UTF-8 text \(byte 3\)"):
        open_corpus([tmp_path / "latin.txt"])
    (tmp_path / "zero.txt").write_bytes(b"")
    with pytest.raises(InputError, match=r"zero\.txt: 0 bytes of distinct text"):
        open_corpus([tmp_path / "zero.txt"])
    (tmp_path / "again.txt").write_text("the same line\n" * 1000)
    with pytest.raises(InputError, match="bytes of distinct text; too little"):
        open_corpus([tmp_path / "again.txt"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(FileFormatError, match=r"broken\.parquet: is not a readable Parquet file"):
        open_corpus([tmp_path / "broken.parquet"])
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "other.parquet")
    with pytest.raises(FileFormatError, match=r"other\.parquet: text: no such column; the file has 'body', 'n'"):
        open_corpus([tmp_path / "other.parquet"])
    with pytest.raises(FileFormatError, match=r"other\.parquet: n: must be a column of strings"):
        open_corpus([tmp_path / "other.parquet"], text_field="n")


def test_a_file_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.txt"
    path.write_text("x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod does not stop root
    with pytest.raises(InputError, match=r"secret\.txt: cannot be read: Permission denied"):
        open_corpus([path])


def splits(corpus: Corpus) -> tuple[set[str], set[str]]:
    return {d.text for d in corpus.training()}, {d.text for d in corpus.held_out()}


def test_repeats_are_dropped_and_splits_are_disjoint(tmp_path: Path) -> None:
    texts = sentences(400)
    one, two = write_texts(tmp_path / "one", texts), write_texts(tmp_path / "two", texts[::-1])
    corpus = open_corpus([one, two])
    training, held_out = splits(corpus)
    assert corpus.documents == 400
    assert not training & held_out
    assert training | held_out == set(texts)
    assert 5 <= len(held_out) <= 40


def test_a_document_stays_in_its_split_when_the_corpus_grows(tmp_path: Path) -> None:
    texts = sentences(800)
    _, small = splits(open_corpus([write_texts(tmp_path / "small", texts[:400])]))
    _, large = splits(open_corpus([write_texts(tmp_path / "large", texts)]))
    assert small == large & set(texts[:400])


def test_one_long_text_is_cut_so_that_some_of_it_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(sentences(500)))
    corpus = open_corpus([path])
    training, held_out = splits(corpus)
    assert training
    assert held_out
    assert sum(map(len, training | held_out)) == path.stat().st_size
    assert sum(map(len, held_out)) >= 0.02 * path.stat().st_size
    assert all(piece.endswith(".\n") for piece in training | held_out), "cut at line ends"


def test_the_default_corpus_is_the_same_every_time() -> None:
    one, two = default_corpus(), default_corpus()
    assert one == two
    names = [d.name for d in one.read()]
    assert "argparse.py" in names
    assert not [name for name in names if "site-packages" in name or "/test" in name]


def test_prepared_tokens_are_the_documents(tmp_path: Path) -> None:
    corpus = open_corpus([write_texts(tmp_path / "text", sentences(60))])
    data = prepare(corpus, 320, cache_dir=tmp_path / "cache")
    end = data.tokenizer.end_of_document
    for stream, documents, size in (
        (np.asarray(data.training), corpus.training(), data.training_bytes),
        (np.asarray(data.held_out), corpus.held_out(), data.held_out_bytes),
    ):
        ends = np.flatnonzero(stream == end)
        assert ends[0] == 0
        assert ends[-1] == len(stream) - 1
        found = [data.tokenizer.decode(stream[a + 1 : b]) for a, b in pairwise(ends)]
        assert found == [d.text for d in documents]
        assert size == sum(len(text.encode()) for text in found)
    assert all(isinstance(shard, np.memmap) for shard in data.parts[0].training.shards)


def test_the_cache_is_used_and_a_damaged_one_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus([write_texts(tmp_path / "text", sentences(60))])
    cache = tmp_path / "cache"
    first = prepare(corpus, 300, cache_dir=cache)
    expected = np.array(first.training)
    with monkeypatch.context() as patch:
        patch.setattr("archsearch.data.tokens.train_tokenizer", lambda *_: pytest.fail("trained again"))
        patch.setattr("archsearch.data.tokens.write_shards", lambda *_: pytest.fail("written again"))
        assert np.array_equal(prepare(corpus, 300, cache_dir=cache).training, expected)
    [stream] = cache.glob("tokens/*/00000.training.bin")
    stream.write_bytes(stream.read_bytes()[:100])
    [saved] = cache.glob("tokenizers/*.json")
    saved.write_text("{")
    again = prepare(corpus, 300, cache_dir=cache)
    assert np.array_equal(again.training, expected)
    assert again.fingerprint == first.fingerprint


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    data = json.loads(tokenizer.to_json())
    data["normalizer"] = {"type": "NFKC"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    corpus = open_corpus([write_texts(tmp_path / "text", [f"x² {i}" for i in range(40)])])
    with pytest.raises(InputError, match="loses bytes of this text"):
        prepare(corpus, 300, tokenizer=read_tokenizer(path), cache_dir=tmp_path / "cache")


def test_batches_depend_on_seed_and_step_alone() -> None:
    stream = np.arange(1003, dtype=np.uint16)
    batches = Batches(stream, sequence=10, batch=4, seed=1)
    steps = [batches.at(step) for step in range(60)]
    assert all(np.array_equal(Batches(stream, 10, 4, 1).at(s), steps[s]) for s in (59, 3, 25))
    assert not np.array_equal(Batches(stream, 10, 4, 2).at(0), steps[0])
    windows = np.concatenate(steps)
    assert (np.diff(windows, axis=1) == 1).all(), "a window is a run of the stream"
    epoch = windows[: batches.windows, :-1]
    assert len(np.unique(epoch)) == batches.windows * 10, "an epoch shows no token twice"
    assert not np.array_equal(np.sort(epoch[:, 0]), np.sort(windows[batches.windows : 2 * batches.windows, 0])), "borders move"


@given(tokens=st.integers(2, 200), sequence=st.integers(1, 20), seed=st.integers(0, 5), step=st.integers(0, 50))
@settings(deadline=None)
def test_batches_never_leave_the_stream(tokens: int, sequence: int, seed: int, step: int) -> None:
    stream = np.arange(tokens, dtype=np.uint32)
    if tokens < 2 * sequence:
        with pytest.raises(InputError, match="too few for sequences"):
            Batches(stream, sequence, 2, seed)
    else:
        assert Batches(stream, sequence, 2, seed).at(step).shape == (2, sequence + 1)


def test_time_left_is_told_once_there_is_something_to_go_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first document that waits for a second, and a thousand like it to come, are no estimate of a quarter of an hour."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ticking, "time", SimpleNamespace(monotonic=lambda: clock.now))
    told: list[Preparing] = []
    ticker = ticking.Ticker(told.append, "tokenising", 1000)
    for clock.now, amount in ((1.0, 1), (2.0, 99), (4.0, 100)):
        ticker.add(amount)
    assert [event.seconds_left for event in told] == [None, 18.0, 16.0]
