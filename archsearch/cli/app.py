"""The command line's frame: the typer app, options that several commands share, and how errors end a command."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="archsearch",
    help="Profile the building blocks of small language models on your devices, and search the hybrid that fits your budgets.",
    epilog="Start with: archsearch run examples/demo.toml --run runs/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

RunOption = Annotated[Path, typer.Option("--run", metavar="DIR", help="The run directory: measurements, study, results.")]
DeviceOption = Annotated[str, typer.Option("--device", metavar="ID", help="local, adb:SERIAL, adb:HOST:PORT; see `archsearch devices`.")]
DevicesOption = Annotated[list[str] | None, typer.Option("--device", metavar="ID", help="May be given several times. Default: local.")]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option("--budget", metavar="B", help="A hard limit such as 'decode_ms@4096<=20'; may be repeated; wins over the space's."),
]
HoldOption = Annotated[
    list[str] | None,
    typer.Option("--hold", metavar="SIZE", help="Hold a size by solving FFN widths: 'parameters=350M', 'weights_mb=baseline+-1%'."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


class Settings:
    """What the options before the command said."""

    debug = False


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="ARCHSEARCH_DEBUG", help="Show tracebacks and log messages.")] = False,
    allow_emulated: Annotated[
        bool, typer.Option("--allow-emulated", help="Take times of emulated devices as numbers, which they are not.")
    ] = False,
) -> None:
    if version:
        from archsearch import __version__

        typer.echo(f"archsearch {__version__}")
        raise typer.Exit
    Settings.debug = debug
    if _rank() is not None and context.invoked_subcommand != "train":
        raise typer.BadParameter(f"only `archsearch train` can be started by torchrun, not `{context.invoked_subcommand}`")
    if allow_emulated:
        from archsearch.emulated import allowed

        context.with_resource(allowed())
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("asyncio").setLevel(logging.INFO)


def print_json(document: Any) -> None:
    """One JSON document on stdout; numbers that JSON has no word for (inf, nan) are refused, not printed."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `archsearch ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    import archsearch.cli.commands  # noqa: F401 - registers the commands

    try:
        result = app(arguments, standalone_mode=False, prog_name="archsearch")
        if result == 130:  # typer's word for Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        if _rank():
            return 1
        return _end(arguments, _interrupted(arguments), 1)
    except Exception as error:
        if _is_usage_error(error):
            _wait_for_first()
            error.show()  # type: ignore[attr-defined]
            return 2
        if isinstance(error, typer.Abort):
            return _end(arguments, _interrupted(arguments), 1)
        if Settings.debug:
            import traceback

            traceback.print_exc()
        if type(error).__name__ == "ToldElsewhere":
            from archsearch.train.parallel.several import outlast_first

            outlast_first()
            return error.exit_code  # type: ignore[attr-defined, no-any-return]
        known = _explain(error)
        if known is None:
            if not Settings.debug:
                kind = type(error).__name__
                return _end(arguments, f"unexpected {kind}: {error}; please report it with the output of `archsearch --debug ...`", 1)
            return 1
        return _end(arguments, *known, error=error)


def _interrupted(arguments: list[str]) -> str:
    again = "the same command with --resume" if "train" in arguments[:2] and "--resume" not in arguments else "the same command"
    return f"interrupted; {again} goes on where it stopped"


def _is_usage_error(error: BaseException) -> bool:
    # typer may bring its own copy of click; what its usage errors share is `show` and exit code 2.
    return hasattr(error, "show") and getattr(error, "exit_code", None) == 2


def _explain(error: BaseException) -> tuple[str, int] | None:
    """The one line and the exit code for an error that is ours; None for one that is nobody's."""
    from archsearch.errors import ArchsearchError
    from devices.base import DeviceError, UnknownDeviceError
    from operators.specs import OperatorError, SpecError

    message = " ".join(str(error).split())
    match error:
        case ArchsearchError():
            return message, error.exit_code
        case SpecError() | UnknownDeviceError():
            return message, 2
        case OperatorError() | DeviceError():
            return message, 1
        case OSError():
            return f"{error.filename or 'a file'}: {error.strerror or error}", 1
        case MemoryError():
            return "out of memory; close other programs, or choose a smaller space or batch", 1
        case ModuleNotFoundError():
            return f"the package {error.name!r} is missing; install archsearch with its dependencies (make setup)", 1
    return None


def _rank() -> int | None:
    """Which of several processes this is, as torchrun says; None where it is one alone."""
    return int(os.environ["RANK"]) if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "").isdigit() else None


def _wait_for_first() -> None:
    """Before several processes are connected, what is wrong is most often wrong for all: torchrun ends this one as soon as the first
    has said so, and it speaks only if that does not happen."""
    if _rank() and "archsearch.train.parallel.several" not in sys.modules:
        time.sleep(2)


def _end(arguments: list[str], message: str, status: int, *, error: BaseException | None = None) -> int:
    rank = _rank()
    _wait_for_first()
    typer.secho(f"error in process {rank}: " if rank else "error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(message, err=True)
    if "--json" in arguments and not rank:
        details = {key: str(value) for key in ("path", "field") if (value := getattr(error, key, None))}
        print_json({"error": {"message": message, **details}})
    return status
