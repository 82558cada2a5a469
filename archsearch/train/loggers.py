"""Where a training's numbers go beside metrics.jsonl: TensorBoard or trackio, if they are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from archsearch.errors import InputError
from archsearch.train.events import Evaluated, Started, Step, TrainEvent

LoggerName = Literal["tensorboard", "trackio"]


class Logger(Protocol):
    """Told every event of a training, in order."""

    def log(self, event: TrainEvent) -> None: ...

    def close(self) -> None: ...


def open_logger(name: str, out: Path) -> Logger:
    """A logger by name; TensorBoard's files lie in `out/tensorboard`, trackio keeps its own database.

    Raises:
        InputError: no such logger, or its package is not installed.
    """
    makers: dict[str, Any] = {"tensorboard": TensorBoard, "trackio": Trackio}
    if name not in makers:
        raise InputError(f"--log: must be one of {', '.join(get_args(LoggerName))}, got {name!r}")
    try:
        logger: Logger = makers[name](out)
    except ImportError as error:
        raise InputError(f"--log {name}: the package is not installed; install it with: pip install {name}") from error
    return logger


def scalars(event: TrainEvent) -> dict[str, float]:
    """What of an event is a curve; the names are the same for every logger."""
    match event:
        case Step():
            return {
                "train/loss": event.loss,
                "train/learning_rate": event.learning_rate,
                "train/grad_norm": event.grad_norm,
                "train/tokens_per_s": event.tokens_per_s,
                "train/tokens": event.tokens,
            }
        case Evaluated():
            curves = {"held_out/bits_per_byte": event.held_out.bits_per_byte, "held_out/nats_per_token": event.held_out.nats_per_token}
            return curves | {f"held_out/{Path(name).name}": bits for name, bits in event.held_out.sources.items()}
    return {}


class TensorBoard:
    """A folder to be shown with `tensorboard --logdir CHECKPOINT`."""

    def __init__(self, out: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer_of, self._folder = SummaryWriter, out / "tensorboard"
        self._writer: Any = None

    def log(self, event: TrainEvent) -> None:
        if isinstance(event, Started):
            # What an interrupted run wrote after its checkpoint is hidden: those steps come again.
            self._writer = self._writer_of(str(self._folder), purge_step=event.step + 1 if event.resumed else None)
            self._writer.add_text("plan", "\n".join(f"    {key} = {value}" for key, value in event.plan.to_dict().items()), event.step)
        for name, value in scalars(event).items():
            self._writer.add_scalar(name, value, getattr(event, "step", None))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Trackio:
    """The project `archsearch`, a run named after the checkpoint folder; shown with `trackio show`."""

    def __init__(self, out: Path) -> None:
        import trackio

        self._trackio, self._out, self._open = trackio, out, False

    def log(self, event: TrainEvent) -> None:
        if isinstance(event, Started):
            name = f"{self._out.absolute().parent.name}-{self._out.name}"
            self._trackio.init(project="archsearch", name=name, config=event.plan.to_dict(), resume="allow" if event.resumed else "never")
            self._open = True
        if values := scalars(event):
            self._trackio.log(values, step=getattr(event, "step", None))

    def close(self) -> None:
        if self._open:
            self._trackio.finish()
