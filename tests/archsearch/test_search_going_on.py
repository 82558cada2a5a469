"""A search that fails, is killed, goes on, or is kept elsewhere."""

from __future__ import annotations

import json
import platform
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from search_fakes import AnalyticTable, FakeEvaluator, space_of
from search_harness import reachable, search, searcher_of, trials_of

from archsearch.checkpoint import save_checkpoint
from archsearch.errors import MissingMeasurement, RunError, StoreError
from archsearch.search import resolve, study, trials_frame, write_results
from archsearch.search.files import place_of_choice
from archsearch.search.study import RETRIED
from archsearch.space import Space
from archsearch.spec import ArchSpec

TrialState = optuna.trial.TrialState


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "INNER_SAMPLES", 800)


# -- failures and resumption --------------------------------------------------------------------------------------------------


def test_a_finished_search_goes_on_from_where_it_was(tmp_path: Path) -> None:
    space = space_of(layers=8)
    search(searcher_of(tmp_path, space, trials=6))
    first = (tmp_path / "trained").read_text().splitlines()
    searcher = searcher_of(tmp_path, space, trials=6)
    _, events = search(searcher)
    assert events == []
    result, _ = search(searcher_of(tmp_path, space, trials=9))
    trained = (tmp_path / "trained").read_text().splitlines()
    assert trained[:6] == first
    assert len(trained) == len(set(trained)) == 9
    assert result.best is not None


def test_a_new_choice_leaves_the_trained_checkpoint_its_spec(tmp_path: Path) -> None:
    """`RUN/spec.toml` is what `RUN/checkpoint` was trained from, until `archsearch run` trains the new choice."""
    search(searcher := searcher_of(tmp_path, space_of(layers=4), trials=6))
    result = searcher.result()
    assert result.best is not None
    assert place_of_choice(tmp_path, result.best.spec) == tmp_path / "spec.toml"
    trained = next(point.spec for point in searcher.points if point.spec != result.best.spec)
    trained.write(tmp_path / "spec.toml")
    before = (tmp_path / "spec.toml").read_bytes()

    def write(folder: Path) -> None:
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / name).write_bytes(b"{}")

    save_checkpoint(tmp_path / "checkpoint", trained, 1, write)
    assert place_of_choice(tmp_path, trained) == tmp_path / "spec.toml"
    chosen = place_of_choice(tmp_path, result.best.spec)
    assert write_results(result, searcher, chosen=chosen) == tmp_path / "choice.toml"
    assert ArchSpec.read(chosen).spec_id == result.best.spec.spec_id
    assert (tmp_path / "spec.toml").read_bytes() == before
    (tmp_path / "checkpoint" / "spec.toml").write_text("torn")
    assert place_of_choice(tmp_path, trained) == tmp_path / "choice.toml"


def test_other_budgets_predict_anew_and_train_nothing_twice(tmp_path: Path) -> None:
    space = space_of(layers=8)
    search(searcher_of(tmp_path, space, trials=6))
    costs = sorted(searcher_of(tmp_path, space).costs(spec).values["parameters"] for spec in reachable(space).values())
    limit = costs[len(costs) // 2]
    result, _ = search(searcher_of(tmp_path, space, [f"parameters<={limit}"], trials=6))
    assert all(point.costs.values["parameters"] <= limit for point in result.front)
    trained = (tmp_path / "trained").read_text().splitlines()
    assert len(trained) == len(set(trained))


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from search_harness import searcher_of
from search_fakes import FakeEvaluator, space_of

class Slow(FakeEvaluator):
    def evaluate_all(self, specs):
        for number, quality in enumerate(super().evaluate_all(specs)):
            yield quality
            print("trained", flush=True)
            time.sleep(600 if len(self.known) >= 5 else 0)

run = Path({run!r})
for event in searcher_of(run, space_of(layers=8), trials=9, evaluator=Slow(run / "trained")).run():
    print(event.outcome, flush=True)
"""


def test_kill_9_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """A real process is killed between the end of a training and the end of its trial; the same command goes on."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(tests=str(Path(__file__).parent), run=str(tmp_path)))
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "trained").exists() or len((tmp_path / "trained").read_text().splitlines()) < 5:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        process.kill()
        process.wait()
    before = (tmp_path / "trained").read_text().splitlines()
    searcher = searcher_of(tmp_path, space_of(layers=8), trials=9)
    cut = [trial for trial in searcher.open_study().get_trials() if trial.state == TrialState.RUNNING]
    assert cut
    result, _ = search(searcher)
    after = (tmp_path / "trained").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 9
    trials = trials_of(searcher)
    assert not [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in cut:
        now = trials[trial.number]
        assert now.state == TrialState.FAIL
        assert "tried again" in now.user_attrs["reason"]
    retries = [trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs]
    assert sorted(retries) == [trial.number for trial in cut]  # each once
    assert len(searcher.points) == 9
    assert result.best is not None


def cut_off_twice(tmp_path: Path) -> tuple[Space, ArchSpec]:
    """The space of a search that was killed twice while it trained the same layout, and that layout."""
    space = space_of(layers=4)
    gone = {"host": platform.node(), "pid": 2**22 - 1, "started": 0.0}
    searcher = searcher_of(tmp_path, space, trials=2)
    for _ in range(2):
        opened = searcher.open_study()
        batch = searcher.propose(opened, searcher.recover(opened) + searcher.seeds(searcher.inner()), [], 1)
        trial, spec = batch.accepted[0]
        trial.set_user_attr("owner", gone)
    return space, spec


def test_a_layout_that_is_cut_off_twice_is_given_up_and_said_to_be(tmp_path: Path) -> None:
    space, spec = cut_off_twice(tmp_path)
    for trials in (3, 4):  # and by the search after that one too
        resumed = searcher_of(tmp_path, space, trials=trials)
        result, _ = search(resumed)
        assert spec.spec_id not in {json.loads(line) for line in (tmp_path / "trained").read_text().splitlines()}
        assert [(lost.number, lost.spec.spec_id, lost.twice) for lost in result.given_up] == [(1, spec.spec_id, True)]
    assert result.to_dict()["given_up"][0]["pattern"] == spec.pattern
    assert "for the second time" in result.to_dict()["given_up"][0]["reason"]
    states = [(trial.state, trial.user_attrs.get("reason", "")) for trial in trials_of(resumed)[:2]]
    assert [state for state, _ in states] == [TrialState.FAIL, TrialState.FAIL]
    assert "tried again" in states[0][1]
    assert "second time" in states[1][1]
    answered = resolve(searcher_of(tmp_path, space, trials=4))
    assert [lost.number for lost in answered.given_up] == [1]


@pytest.mark.parametrize("halving", [1, 2])
def test_what_was_given_up_is_tried_again_when_asked_for(tmp_path: Path, halving: int) -> None:
    """Also where the search has all that it wanted."""
    space, spec = cut_off_twice(tmp_path)
    search(searcher_of(tmp_path, space, trials=3))
    again = searcher_of(tmp_path, space, trials=3, halving=halving)
    list(again.run(retry=True))
    result = again.result()
    assert result.given_up == ()
    assert spec.spec_id in {point.spec.spec_id for point in again.points}
    assert len(again.points) == 4
    assert [trial.user_attrs["source"] for trial in trials_of(again) if trial.user_attrs.get("spec_id") == spec.spec_id][-1] == RETRIED


def test_a_trial_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    space = space_of(layers=4)
    other = searcher_of(tmp_path, space)
    trial, _ = other.propose(other.open_study(), [], [], 1).accepted[0]
    searcher = searcher_of(tmp_path, space, trials=3)
    search(searcher)
    assert trials_of(searcher)[trial.number].state == TrialState.RUNNING


def test_a_failed_training_is_kept_with_its_reason(tmp_path: Path) -> None:
    space = space_of(layers=4)
    bad = searcher_of(tmp_path, space).seeds(searcher_of(tmp_path, space).inner())[0].spec
    searcher = searcher_of(tmp_path, space, trials=5, evaluator=FakeEvaluator(tmp_path / "trained", fails=[bad.spec_id]))
    result, events = search(searcher)
    assert len(searcher.points) == 5
    assert bad.spec_id not in {point.spec.spec_id for point in result.front}
    failed = [trial for trial in trials_of(searcher) if trial.state == TrialState.FAIL]
    assert [trial.user_attrs["reason"] for trial in failed] == ["its training process died"]
    assert [(lost.spec.spec_id, lost.reason, lost.twice) for lost in result.given_up] == [(bad.spec_id, "its training process died", False)]
    assert [event.outcome for event in events if "failed" in event.outcome] == ["failed: its training process died"]


def test_when_every_training_fails_so_does_the_search(tmp_path: Path) -> None:
    space = space_of(layers=2, ffn=[512])
    evaluator = FakeEvaluator(tmp_path / "trained", fails=reachable(space))
    with pytest.raises(RunError, match=r"no layout could be trained: .*its training process died"):
        search(searcher_of(tmp_path, space, evaluator=evaluator))


def test_an_operator_without_measurements_is_left_out(tmp_path: Path) -> None:
    searcher = searcher_of(tmp_path, space_of(layers=4), trials=3, table=AnalyticTable(missing="gqa"))
    result, _ = search(searcher)
    assert searcher.left_out == {"gqa2": "analytic: gqa was not measured"}
    assert all(block.operator.kind == "short_conv" for point in result.front for block in point.spec.layers)
    with pytest.raises(MissingMeasurement, match="gqa was not measured"):
        searcher_of(tmp_path, Space.from_dict(ONLY_GQA), table=AnalyticTable(missing="gqa"))


ONLY_GQA = {
    "model": {"hidden_size": 256, "vocab_size": 1000, "layers": 4},
    "operators": [{"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 64}],
    "ffn": {"intermediate_size": 512},
}


def test_every_trial_is_in_the_table_with_its_reason(tmp_path: Path) -> None:
    space = space_of(layers=[4, 6])
    values = sorted(searcher_of(tmp_path, space).costs(spec).values["parameters"] for spec in reachable(space).values())
    searcher = searcher_of(tmp_path, space, [f"parameters<={values[len(values) // 3]}"], trials=6)
    search(searcher)
    frame = trials_frame(searcher.url, searcher.study_name)
    assert list(frame["trial"]) == list(range(len(frame)))
    trained, refused = frame[frame["state"] == "trained"], frame[frame["state"] == "refused"]
    assert set(trained["spec_id"]) == {point.spec.spec_id for point in searcher.points}
    assert trained["reason"].isna().all()
    assert trained[["parameters", "decode_ms@4096", "text_bits_per_byte", "recall_accuracy"]].notna().all(axis=None)
    assert refused["reason"].notna().all()
    assert refused["text_bits_per_byte"].isna().all()
    with pytest.raises(RunError, match="no search of that space"):
        trials_frame(searcher.url, "another")


# -- storage ------------------------------------------------------------------------------------------------------------------


def test_sqlite_is_in_wal_mode_and_elsewhere_if_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere' / 'my.db'}"
    searcher = searcher_of(tmp_path, space_of(layers=2), trials=1, storage=url)
    search(searcher)
    assert not (tmp_path / "study.db").exists()
    with sqlite3.connect(tmp_path / "elsewhere" / "my.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "cannot be used as the study's storage"),
        ("postgresql+nodriver://user:secret@localhost/x", "cannot be used as the study's storage"),
        ("sqlite:////proc/none/study.db", "cannot be used as the study's storage"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as error:
        search(searcher_of(tmp_path, space_of(layers=2), storage=url))
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_corrupt_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database, but long enough to be read as one" * 50)
    with pytest.raises(StoreError, match=r"study\.db: cannot be used") as error:
        search(searcher_of(tmp_path, space_of(layers=2)))
    assert "\n" not in str(error.value)
