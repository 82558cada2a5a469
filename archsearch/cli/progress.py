"""Progress bars on stderr, drawn from the events that the library yields; plain lines where stderr is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from archsearch.cli.tables import stderr

NOTE_WIDTH = 34
"""Characters beside a bar of 20, so that all of it fits 80 columns."""
TITLE_WIDTH = 24
"""Of the names of devices side by side: a phone's on the network may have fifty letters."""
PLAIN_EVERY = 0.1
"""Without a terminal, a line for each tenth of the way."""


def clock(seconds: float | None) -> str:
    """ "0:42" or "1:05:12"; empty when it is not known."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} left" if minutes >= 60 else f"{minutes}:{rest:02} left"


class Bar:
    """One line: what is done, how far, what just happened, how long it will take."""

    def __init__(self, title: str, bar_width: int = 20, shared: Progress | None = None, title_width: int = 8) -> None:
        self.title, self._note_width = title, NOTE_WIDTH + 20 - bar_width
        self._shown = title if len(title) <= TITLE_WIDTH else f"{title[: TITLE_WIDTH - 1]}…"
        self._shared = shared is not None
        if shared is not None:  # one of several lines, whose titles are as wide as the longest of devices' names
            self._note_width = max(12, self._note_width - 2 - title_width)
        self._progress = shared or _progress(bar_width, 8)
        self._task: TaskID | None = None
        self._told, self._total = -1.0, 0.0

    def __enter__(self) -> Bar:
        if stderr.is_terminal:
            if not self._shared:
                self._progress.start()
            self._task = self._progress.add_task("", total=None, title=escape(self._shown), count="", left="", note="")
        elif not self._shared:
            stderr.print(f"{self.title} ...", style="bold")
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None and not self._shared:
            self._progress.stop()

    def update(self, done: float, total: float, *, note: str = "", seconds_left: float | None = None, count: str | None = None) -> None:
        count = count if count is not None else f"{done:.0f}/{total:.0f}"
        if self._task is not None:
            shown = note if len(note) <= self._note_width else note[: self._note_width - 1] + "…"
            self._progress.update(self._task, completed=done, total=total, count=count, left=clock(seconds_left), note=escape(shown))
            return
        share = done / total if total else 0.0
        if share < self._told:  # another phase begins under the same title
            self._told, self._total = -1.0, 0.0
        if total and (share >= self._told + PLAIN_EVERY or done == total) and share != self._told:
            self._told = share
            whose = f"{self.title} " if self._shared else ""
            stderr.print(f"  {whose}{count} {note} {clock(seconds_left)}".rstrip(), markup=False)

    def say(self, text: str, *, style: str = "") -> None:
        """A line that stays, above the bar."""
        text = f"{self.title}: {text}" if self._shared else text
        (self._progress.console if self._task is not None else stderr).print(f"  {text}", style=style, markup=False)


def _progress(bar_width: int, title_width: int) -> Progress:
    return Progress(
        TextColumn(f"[bold]{{task.fields[title]:<{title_width}}}"),
        BarColumn(bar_width=bar_width),
        TextColumn("{task.fields[count]}"),
        TextColumn("[dim]{task.fields[left]}"),
        TextColumn("{task.fields[note]}", markup=True),
        console=stderr,
        transient=False,
    )


@contextlib.contextmanager
def side_by_side(title: str, names: Sequence[str]) -> Iterator[dict[str, Bar]]:
    """A bar for each of several names, which work at once; of one alone, the bar of a stage."""
    if len(names) == 1:
        with stage(title) as bar:
            yield {names[0]: bar}
        return
    width = min(TITLE_WIDTH, max(map(len, names)))
    shared = _progress(8, width)
    with contextlib.ExitStack() as stack:
        if stderr.is_terminal:
            stack.enter_context(shared)
        else:
            stderr.print(f"{title} ...", style="bold")
        yield {name: stack.enter_context(Bar(name, 8, shared, width)) for name in names}


@contextlib.contextmanager
def stage(title: str, *, bar_width: int = 20) -> Iterator[Bar]:
    """A bar for a block; a narrower one leaves more room for what is said beside it."""
    with Bar(title, bar_width) as bar:
        yield bar


def show(bar: Bar, event: Any) -> None:
    """Draw any event of the library on a bar."""
    name = type(event).__name__
    match name:
        case "ProfileEvent":
            if event.failed:
                bar.say(f"failed: {event.label}: {event.failed}", style="yellow")
            done, total = (event.done, event.total)
            bar.update(done, total, note=f"{event.stage} {event.label}", seconds_left=event.seconds_left)
        case "DoctorEvent":
            bar.update(event.done, event.total, note=event.label)
        case "BenchEvent":
            if event.failed:
                bar.say(f"failed: {event.label}: {event.failed}", style="yellow")
            bar.update(event.done, event.total, note=event.label)
        case "CalibrateEvent":
            if event.failed:
                bar.say(f"failed: {event.label}: {event.failed}", style="yellow")
            bar.update(event.done, event.total, note=event.label, seconds_left=event.seconds_left)
        case "SearchEvent":
            count = f"{event.trained}/{event.wanted} trained"
            bar.update(event.trained, event.wanted, note=event.pattern, seconds_left=event.seconds_left, count=count)
            if not event.outcome.startswith("over budget"):
                bar.say(f"{event.trained:>3}  {event.pattern}: {event.outcome}")
        case "Step":
            last = getattr(bar, "last_step", 0) or event.step
            rate = f"{event.learning_rate:.1e}".replace("e-0", "e-")
            note = f"loss {event.loss:.3f} lr {rate} norm {event.grad_norm:.2f} {event.tokens_per_s:,.0f} tok/s"
            bar.update(event.step, last, note=note, seconds_left=event.eta_s)
        case "Started" if hasattr(event, "plan"):
            bar.last_step = event.plan.last_step  # type: ignore[attr-defined]
            how = f"goes on at step {event.step}" if event.resumed else "starts"
            plan = event.plan
            among = f", {event.processes} processes ({event.parallel})" if event.parallel else ""
            bar.say(f"{how}: {plan.tokens:,} tokens in {plan.last_step:,} steps of {plan.batch} x {plan.sequence}{among}")
        case "Cut":
            bar.last_step = event.last_step  # type: ignore[attr-defined]
            bar.say(f"the machine is slower than planned for: {event.last_step:,} steps in place of {event.planned:,}")
        case "Evaluated":
            bar.say(f"step {event.step:,}: {event.held_out.bits_per_byte:.3f} held-out bits per byte")
        case "Preparing":
            unit, scale = ("documents", 1) if event.stage == "streaming" else ("MB", 1e6)
            total = f"/{event.total / scale:,.0f}" if event.total else ""
            count = f"{event.done / scale:,.0f}{total} {unit}"
            bar.update(min(event.done, event.total), event.total, note=event.stage, seconds_left=event.seconds_left, count=count)
        case "ParityReport":
            bar.say(str(event))
