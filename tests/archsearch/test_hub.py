"""Hugging Face data sets through `datasets.load_dataset`, streamed, from local folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archsearch.data import Preparing, hub, open_corpus
from archsearch.data.hub import HubSet, cached
from archsearch.errors import FileFormatError, InputError, RunError

datasets = pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what datasets imports
    pytest.mark.usefixtures("offline"),
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder needs no network; should datasets ask for one, it fails at once."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


TEXTS = [f"document number {i} says something of its own\n" for i in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set as it lies on the hub: two files of the split train, one of the split test."""
    path = tmp_path / "set"
    path.mkdir()
    for name, rows in (("train-0", TEXTS[:150]), ("train-1", [*TEXTS[150:], "", None]), ("test-0", ["a test\n", "another\n"])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps({"text": row, "id": i}) + "\n" for i, row in enumerate(rows)))
    return path


def read(location: str, cache: Path, **options: Any) -> list[str]:
    return [document.text for document in open_corpus([location], cache_dir=cache, **options).read()]


def test_a_data_set_becomes_documents(folder: Path, tmp_path: Path) -> None:
    assert read(f"hf:{folder}", tmp_path / "cache") == TEXTS
    assert read(f"hf:{folder}?documents=30", tmp_path / "cache") == TEXTS[:30]
    assert {text.split("\n")[0] for text in cached_texts(f"hf:{folder}?split=test", tmp_path)} == {"a test", "another"}


def cached_texts(location: str, tmp_path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(cached(location, tmp_path / "cache"))["text"].to_pylist()


def test_a_saved_data_set_too(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"body": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    assert cached_texts(f"hf:{tmp_path / 'saved'}?field=body", tmp_path) == TEXTS


def test_it_is_streamed_once_and_again_when_its_files_change(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = f"hf:{folder}"
    assert read(location, tmp_path / "cache") == TEXTS
    with monkeypatch.context() as patch:
        patch.setattr(hub, "_open", lambda *_: pytest.fail("opened again"))
        assert read(location, tmp_path / "cache") == TEXTS
    (folder / "train-1.jsonl").write_text(json.dumps({"text": "new\n", "id": 0}) + "\n")
    assert read(location, tmp_path / "cache") == [*TEXTS[:150], "new\n"]


def test_a_broken_stream_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection fails after some documents, twice; nothing is kept twice or lost."""
    monkeypatch.setattr(hub, "PART_BYTES", 1500)
    monkeypatch.setattr("archsearch.data.progress.Ticker.EVERY_S", 0.0)
    original, opened = hub._open, []

    class Flaky:
        def __init__(self, rows: Any) -> None:
            self.rows, self.column_names = rows, rows.column_names
            self.state_dict, self.load_state_dict = rows.state_dict, rows.load_state_dict

        def __iter__(self) -> Any:
            for i, row in enumerate(self.rows):
                if i == 70:
                    raise ConnectionError("reset by peer")
                opened.append(row["id"])
                yield row

    monkeypatch.setattr(hub, "_open", lambda *args: Flaky(original(*args)))
    told: list[Preparing] = []
    for _ in range(2):
        with pytest.raises(RunError, match=r"broke off after \d+ documents: reset by peer; the same command goes on"):
            cached(f"hf:{folder}", tmp_path / "cache", progress=told.append)
    monkeypatch.setattr(hub, "_open", original)
    assert read(f"hf:{folder}", tmp_path / "cache") == TEXTS
    assert len(opened) == 140, "the second attempt began where the first one's last part ended"
    assert told[-1].done > 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?rows=3", r"unknown option 'rows'; it should look like hf:REPO\?config="),
        ("?documents=few", "documents: must be a whole number above 0, got 'few'"),
        ("?field=body", "body: no such column; the data set has 'text', 'id'; name the one that holds the text with field="),
        ("?field=id", "id: must be a column of strings, holds int"),
        ("?split=validation", "cannot be opened: .*validation"),
    ],
)
def test_what_is_refused(folder: Path, tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises((InputError, FileFormatError), match=message):
        cached(f"hf:{folder}{options}", tmp_path / "cache")


def test_a_data_set_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:nobody/nothing-at-all: cannot be opened: "):
        cached("hf:nobody/nothing-at-all", tmp_path / "cache")
    with pytest.raises(InputError, match="names no data set"):
        HubSet.parse("hf:?split=train")


def test_without_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package 'datasets'; install it with: pip install 'archsearch\[data\]'"):
        cached(f"hf:{folder}", tmp_path / "cache")
