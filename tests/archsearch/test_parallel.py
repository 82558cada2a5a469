"""Several processes train one model: the same batches, losses and weights as one, and one end for all. Real processes, gloo."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainings
from ranks import FullDisk, Job, Kill, KillInSave, NoNumber, OtherText, Outcome, Signal, in_float64, save_always, train_in
from safetensors.numpy import load_file

from archsearch.checkpoint import INCOMING, Checkpoint
from archsearch.errors import InputError
from archsearch.spec import ArchSpec
from archsearch.train import TrainSettings, read_metrics, train
from archsearch.train.parallel import Team, launched, open_team
from archsearch.train.parallel.launch import Launch, choose
from archsearch.train.parallel.team import collect, deal

pytestmark = pytest.mark.timeout(900)  # processes that are forked by the dozen may wait for others on a busy machine

# Five sequences an update: two processes have three and two of them, in two passes and in one.
SETTINGS = replace(trainings.SETTINGS, tokens=12 * 5 * 32, batch=5)
ROUNDING = 2.0**-53
"""Of float64, relative: half a unit in the last place."""
SUMS = 12 * 5 * 32
"""Roundings that can add up in a weight: it changes once a step, by a mean over a batch."""
KINDS: list[Any] = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def job(tiny_spec: ArchSpec, texts: Path, cache: Path) -> Job:
    return Job(spec=tiny_spec, texts=[str(texts)], out=cache, cache=cache, settings=SETTINGS)


def state(out: Path) -> Mapping[str, np.ndarray[Any, Any]]:
    """Weights and moments."""
    opened = Checkpoint.open(out)
    return {**load_file(opened.file("model.safetensors")), **load_file(opened.file("optimizer.safetensors"))}


def curve(out: Path) -> list[tuple[float, float]]:
    """(loss, gradient norm) of every update."""
    return [(row["loss"], row["grad_norm"]) for row in read_metrics(out) if row["event"] == "step"]


def held_out(out: Path) -> list[Any]:
    return [row["held_out"] for row in read_metrics(out) if row["event"] == "evaluated"]


def assert_well(outcomes: list[Outcome]) -> None:
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes), "\n".join(outcome.trace for outcome in outcomes)
    assert len({tuple(event for event in outcome.events if event[0] != "Saved") for outcome in outcomes}) == 1, "all see the same"
    assert outcomes[0].events[-1] == ("Finished", 12)


def assert_same_bits(one: Path, two: Path) -> None:
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []
    assert curve(one) == curve(two)
    assert held_out(one) == held_out(two)
    assert json.loads((one / "samples.json").read_text()) == json.loads((two / "samples.json").read_text())


def assert_agree(one: Path, two: Path, unit: float) -> None:
    """Equal up to sums taken in another order, each of which rounds by `unit`."""
    a, b = state(one), state(two)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=SUMS * unit, atol=SUMS * unit, err_msg=name)
    np.testing.assert_allclose(curve(two), curve(one), rtol=SUMS * unit)


@pytest.fixture(scope="module")
def whole(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Uninterrupted trainings in float64, by kind and number of processes; every other must end as one of these."""
    folder = tmp_path_factory.mktemp("whole")
    outs = {(kind, size): folder / f"{kind}{size}" for kind, size in (("auto", 1), ("ddp", 2), ("fsdp", 2))}
    for (kind, size), out in outs.items():
        settings = replace(SETTINGS, parallel=kind)  # type: ignore[arg-type]
        assert_well(train_in(size, replace(job, out=out, settings=settings, faults=[in_float64])))
    return outs


# --- the same as one process ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_does(whole: dict[tuple[str, int], Path], kind: str) -> None:
    """In float64, where nothing but the order of sums can differ, all weights and moments agree to its rounding."""
    assert state(whole["auto", 1])["embed_tokens.weight"].dtype == np.float64
    assert_agree(whole["auto", 1], whole[kind, 2], ROUNDING)
    assert [row["processes"] for row in read_metrics(whole[kind, 2]) if row["event"] == "started"] == [2]
    assert {file.name for file in whole[kind, 2].iterdir()} == {file.name for file in whole["auto", 1].iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_documents_apart_mixtures_and_an_untied_head_in_fp32(job: Job, kind: Any, tmp_path: Path, texts: Path) -> None:
    """The default precision, whose rounding Adam magnifies where a gradient is next to nothing: losses agree all the same."""
    (tmp_path / "numbers.txt").write_text("\n".join(f"{i} {i * i}" for i in range(600)))
    mixture = [f"{texts}:0.7", f"{tmp_path / 'numbers.txt'}:0.3"]
    settings = replace(SETTINGS, isolate_documents=True)
    job = replace(job, texts=mixture, spec=replace(job.spec, tie_embeddings=False), settings=settings)
    one, two = tmp_path / "one", tmp_path / "two"
    assert_well(train_in(1, replace(job, out=one)))
    assert_well(train_in(2, replace(job, out=two, settings=replace(settings, parallel=kind))))
    np.testing.assert_allclose(curve(two), curve(one), rtol=SUMS * 2.0**-24)
    assert held_out(two)[0] == held_out(one)[0], "the same weights: the same bits, whoever scores which window"
    assert len(held_out(two)[0]["sources"]) == 2


@pytest.mark.slow
def test_sharded_bf16_is_that_of_one_process_up_to_its_rounding(job: Job, tmp_path: Path) -> None:
    """Layers are gathered in bf16, where one process rounds the same weights as it multiplies; only norms' weights are rounded too."""
    settings = replace(SETTINGS, dtype="bf16")
    assert_well(train_in(1, replace(job, out=tmp_path / "one", settings=settings)))
    assert_well(train_in(2, replace(job, out=tmp_path / "two", settings=replace(settings, parallel="fsdp"))))
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    np.testing.assert_allclose(two[0], one[0], rtol=2.0**-8)
    np.testing.assert_allclose(np.array(two)[:, 0], np.array(one)[:, 0], rtol=2.0**-8)
    assert {value.dtype for value in state(tmp_path / "two").values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_muon_trains_in_two_processes_as_in_one(job: Job, tmp_path: Path) -> None:
    settings = replace(SETTINGS, optimizer="muon")
    for size, name in ((1, "one"), (2, "two")):
        assert_well(train_in(size, replace(job, out=tmp_path / name, settings=settings, faults=[in_float64])))
    assert_agree(tmp_path / "one", tmp_path / "two", ROUNDING)


# --- resume ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("ddp", Kill(rank=1, step=7)),
        ("fsdp", Kill(rank=0, step=7)),
        ("fsdp", KillInSave(rank=1, step=5, after=False)),
        ("fsdp", KillInSave(rank=0, step=5, after=True)),
    ],
    ids=["ddp", "fsdp", "fsdp, half a part", "fsdp, all parts, no manifest"],
)
def test_a_training_that_lost_a_process_resumes_to_the_same_bits(
    job: Job, whole: dict[tuple[str, int], Path], tmp_path: Path, kind: Any, fault: Any
) -> None:
    """kill -9 of one: the other ends by itself, in one line; both go on from the last whole checkpoint."""
    out = tmp_path / "out"
    job = replace(job, out=out, settings=replace(SETTINGS, parallel=kind, save_every_seconds=0))
    outcomes = train_in(2, replace(job, faults=[in_float64, save_always, fault]))
    dead, left = outcomes[fault.rank], outcomes[1 - fault.rank]
    assert dead.killed == signal.SIGKILL
    assert left.error is not None, "it does not hang"
    assert left.error[0] == "RunError", left.trace
    assert left.error[1].startswith("another process of this training has ended, or the network to it broke (")
    assert left.error[1].endswith("; its own output says why; go on from the last checkpoint with --resume")
    assert Checkpoint.open(out).step == (fault.step if isinstance(fault, Kill) else fault.step - 1)
    assert (out / INCOMING).exists() == (isinstance(fault, KillInSave) and fault.rank == 0), "who writes also cleans up, if it can"
    assert_well(train_in(2, replace(job, resume=True, faults=[in_float64])))
    assert_same_bits(whole[kind, 2], out)
    assert not (out / INCOMING).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("ddp", 2), ("auto", 1)),
        (("fsdp", 2), ("auto", 1)),
        (("auto", 1), ("ddp", 2)),
        (("auto", 1), ("fsdp", 2)),
        (("fsdp", 2), ("fsdp", 3)),
    ],
    ids=lambda pair: f"{pair[0]} x {pair[1]}",
)
def test_a_resume_with_another_number_of_processes(
    job: Job, whole: dict[tuple[str, int], Path], tmp_path: Path, first: tuple[Any, int], then: tuple[Any, int]
) -> None:
    """Whatever saved, whatever goes on: the weights agree to rounding with those of an uninterrupted training."""
    out = tmp_path / "out"
    stop = Signal(rank=0, step=5, number=signal.SIGINT)
    begun = replace(job, out=out, settings=replace(SETTINGS, parallel=first[0]), faults=[in_float64, stop])
    assert train_in(first[1], begun)[0].error == ("KeyboardInterrupt", "")
    opened = Checkpoint.open(out)
    assert opened.step == 6
    assert [name.split("-")[1] for name in opened.parts] == (["00001", "00002"] if first[0] == "fsdp" else [])
    assert opened.weights().keys() == Checkpoint.open(whole["auto", 1]).weights().keys(), "an export can read it, parts or not"
    goes_on = replace(job, out=out, settings=TrainSettings(parallel=then[0]), resume=True, faults=[in_float64])
    assert_well(train_in(then[1], goes_on))
    assert_agree(whole["auto", 1], out, ROUNDING)
    assert Checkpoint.open(out).parts == []
    assert not list(out.glob("shard-*")), "what the parts were in is gone"


@pytest.mark.slow
def test_three_processes_resume_to_the_same_bits(job: Job, tmp_path: Path) -> None:
    """Of three numbers the order of the sum matters, and DDP's differs between its first pass and the next: nobody trains on the first."""
    job = replace(job, settings=replace(SETTINGS, parallel="ddp"))
    job = replace(job, faults=[in_float64])
    assert_well(train_in(3, replace(job, out=tmp_path / "whole")))
    out = tmp_path / "out"
    train_in(3, replace(job, out=out, faults=[in_float64, Signal(rank=2, step=5, number=signal.SIGTERM)]))
    assert Checkpoint.open(out).step == 6
    assert_well(train_in(3, replace(job, out=out, resume=True)))
    assert_same_bits(tmp_path / "whole", out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_who_is_told_to_stop_stops_all_and_saves_once(job: Job, tmp_path: Path, kind: Any) -> None:
    out = tmp_path / "out"
    stop = Signal(rank=1, step=3, number=signal.SIGTERM)
    outcomes = train_in(2, replace(job, out=out, settings=replace(SETTINGS, parallel=kind), faults=[stop]))
    assert [outcome.error for outcome in outcomes] == [("KeyboardInterrupt", ""), ("ToldElsewhere", "interrupted")]
    for outcome in outcomes:
        assert outcome.events[-1] == ("Step", 4)
    assert Checkpoint.open(out).step == 4
    assert len(curve(out)) == 4
    shutil.copytree(out, tmp_path / "kept")
    assert_well(train_in(2, replace(job, out=out, settings=replace(SETTINGS, parallel=kind), resume=True)))


# --- one end for all ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_number_in_one_process_stops_all_with_one_message(job: Job, tmp_path: Path, kind: Any) -> None:
    out = tmp_path / "out"
    first, second = train_in(2, replace(job, out=out, settings=replace(SETTINGS, parallel=kind), faults=[NoNumber(rank=1, step=3)]))
    assert first.error is not None
    assert second.error is not None
    assert (first.error[0], second.error[0]) == ("RunError", "ToldElsewhere")
    assert first.error[1].startswith(f"step 4: the loss is nan; the weights before it are in {out}, the batch in ")
    opened = Checkpoint.open(out)
    assert opened.step == 3
    assert all(np.isfinite(value).all() for value in opened.weights().values())
    assert load_file(out / "nonfinite.safetensors")["ids"].shape == (5, 33), "of both processes"


@pytest.mark.slow
def test_a_failure_before_the_training_is_told_by_the_first(job: Job, tmp_path: Path, texts: Path) -> None:
    (tmp_path / "other.txt").write_text("".join(f"something else {i}\n" for i in range(300)))
    for path, message in (
        (str(tmp_path / "nowhere"), "nowhere"),
        (str(tmp_path / "other.txt"), "reads other text than the first process; give --data that is the same on all nodes"),
    ):
        out = tmp_path / "out"
        first, second = train_in(2, replace(job, out=out, faults=[OtherText(rank=1, path=path)]))
        assert first.error is not None
        assert second.error is not None
        assert (first.error[0], second.error[0]) == ("InputError", "ToldElsewhere")
        assert first.error[1].startswith("process 1 of 2 on ")
        assert message in first.error[1]
        assert not out.exists()
    small = replace(job, out=tmp_path / "out", settings=replace(SETTINGS, batch=1))
    assert [outcome.error for outcome in train_in(2, small)] == [
        ("InputError", "batch: 1 sequences cannot be shared by 2 processes; start at most 1, or train with --batch 2 or more"),
        ("ToldElsewhere", "batch: 1 sequences cannot be shared by 2 processes; start at most 1, or train with --batch 2 or more"),
    ]
    muon = replace(job, out=tmp_path / "out", settings=replace(SETTINGS, parallel="fsdp", optimizer="muon"))
    errors = [outcome.error for outcome in train_in(2, muon)]
    message = "--parallel fsdp: not with --optimizer muon, which needs whole matrices; choose --parallel ddp, or adamw"
    assert errors == [("InputError", message), ("ToldElsewhere", message)]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_full_disk_of_one_process_leaves_the_checkpoint_before(job: Job, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = replace(SETTINGS, parallel="fsdp", save_every_seconds=0)
    first, second = train_in(2, replace(job, out=out, settings=settings, faults=[save_always, FullDisk(rank=1, step=4)]))
    assert first.error is not None
    assert second.error is not None
    assert (first.error[0], second.error[0]) == ("RunError", "ToldElsewhere")
    assert first.error[1].startswith("process 1 of 2 on ")
    assert "No space left on device" in first.error[1]
    assert Checkpoint.open(out).step == 3
    assert Checkpoint.open(out).weights()


# --- without other processes ----------------------------------------------------------------------------------------


class Pretend(Team):
    """One of several, whose others are further objects of this class."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("batch", "size", "micro_batch"), [(8, 2, 2), (5, 2, 2), (7, 3, 1), (3, 3, 4), (9, 4, 2)])
def test_a_batch_is_shared_out_whole_in_as_many_passes_everywhere(tiny_spec: ArchSpec, batch: int, size: int, micro_batch: int) -> None:
    class Plan:
        pass

    plan: Any = Plan()
    plan.batch, plan.micro_batch = batch, micro_batch
    ids_BT = torch.arange(batch)[:, None]
    seen: list[int] = []
    passes = set()
    for rank in range(size):
        team = Pretend(rank, size)
        parts = team.parts(ids_BT[team.rows(batch)], plan)
        passes.add(len(parts))
        assert all(len(part_BT) <= micro_batch for part_BT, _ in parts)
        assert all(share in (0.0, len(part_BT) / batch) for part_BT, share in parts)
        seen += [int(row) for part_BT, share in parts if share for row in part_BT[:, 0]]
    assert seen == list(range(batch))
    assert len(passes) == 1


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 3), (6, 3), (7, 3)])
def test_what_is_dealt_comes_back_in_order(count: int, size: int) -> None:
    hands = [deal(range(count), Pretend(rank, size)) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1

    class Together(Pretend):
        def exchange(self, value: Any) -> list[Any]:
            return hands

    assert collect(hands[0], count, Together(0, size)) == list(range(count))


def test_a_process_alone_has_all() -> None:
    team = Team()
    assert (team.first, team.sharded, team.rows(5)) == (True, False, slice(0, 5))
    assert (team.agree(3), team.total(0.5), team.exchange("x"), team.in_turn(lambda: 7)) == (3, 0.5, ["x"], 7)


def test_how_the_model_is_shared_out_by_default() -> None:
    assert choose(10**12, None, "adamw") == "ddp", "on CPUs"
    assert choose(10**9, 80 * 10**9, "adamw") == "ddp"
    assert choose(4 * 10**9, 80 * 10**9, "adamw") == "fsdp"
    assert choose(4 * 10**9, 80 * 10**9, "muon") == "ddp"


def test_what_torchrun_says() -> None:
    assert launched({}) is None
    said = {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert launched(said) == Launch(3, 16, 8, 1)
    with pytest.raises(InputError, match="must all be set, as torchrun sets them; 'LOCAL_RANK' is not"):
        launched({"RANK": "3", "WORLD_SIZE": "16"})


def test_asking_for_several_processes_in_one_is_refused(
    tiny_spec: ArchSpec, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="--parallel ddp: this is one process; start several with: torchrun --nproc-per-node N -m archs"):
        list(train(tiny_spec, [texts], tmp_path / "out", settings=replace(SETTINGS, parallel="ddp")))
    with pytest.raises(InputError, match="parallel: must be auto, ddp or fsdp, got 'tp'"):
        TrainSettings(parallel="tp")  # type: ignore[arg-type]
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    monkeypatch.delitem(sys.modules, "archsearch.train.parallel.several", raising=False)
    with pytest.raises(InputError, match=r"several processes need Lightning Fabric; install it with: pip install 'archsearch\[cluster\]'"):
        open_team("auto", 1000, "adamw")
    assert not (tmp_path / "out").exists()


def test_a_process_alone_needs_no_fabric() -> None:
    import subprocess

    code = "import sys; import archsearch.train; sys.exit(any(name.startswith('lightning') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
