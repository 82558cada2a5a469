"""The command that builds the program which measures on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from archsearch.cli.app import JsonOption, app, print_json

if TYPE_CHECKING:
    from devices.bundle import Bundle

agent_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(agent_app, name="agent", help="Build the program that measures on a device.")


@agent_app.callback()
def _agent() -> None:
    """Build the program that measures on a device."""


@agent_app.command(epilog="Example: archsearch agent build")
def build(
    compiler: Annotated[str | None, typer.Option("--cc", metavar="COMMAND", help="The C compiler, with its options.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build it even if the cache has it.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Build the agent in C with all that it needs, in a folder of its own. What is built already is taken from the cache."""
    import shlex

    from archsearch.cli.tables import stderr
    from devices import build as builder

    recipe = builder.host_recipe(shlex.split(compiler) if compiler else None)
    bundle = builder.build(recipe, force=force, say=lambda text: stderr.print(f"{text} ...", style="dim"))
    print_json(document(bundle)) if json_output else print_bundle(bundle)


def document(bundle: Bundle) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "bundle": str(bundle.folder),
        "entry": str(bundle.entry),
        "target": bundle.target,
        "abi": bundle.abi,
        "agent": bundle.agent,
        "runtime": bundle.runtime,
        "bytes": bundle.size_bytes,
    }


def print_bundle(bundle: Bundle) -> None:
    from archsearch.cli.tables import stdout

    stdout.print(f"agent {bundle.agent}, {bundle.runtime}, for {bundle.abi} ({bundle.target}), {bundle.size_bytes / 1e6:.0f} MB in")
    stdout.print(str(bundle.folder), soft_wrap=True)
