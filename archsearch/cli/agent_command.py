"""The command that builds the program which measures on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from archsearch.cli.app import JsonOption, app, print_json

if TYPE_CHECKING:
    from devices.bundle import Bundle

agent_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(agent_app, name="agent")


@agent_app.callback()
def _agent() -> None:
    """Build the program that measures on a device."""


@agent_app.command(
    epilog="Examples: archsearch agent build · archsearch agent build --abi arm64-v8a · "
    "archsearch agent build --ndk ~/android-ndk-r27c --ort-aar onnxruntime-android-1.29.0.aar"
)
def build(
    abi: Annotated[
        Literal["arm64-v8a", "x86_64"] | None,
        typer.Option("--abi", help="For a phone or board with this processor. Default: for this machine."),
    ] = None,
    ndk: Annotated[
        Path | None, typer.Option("--ndk", metavar="DIR", help="Android's NDK: build for Android's own C library, with --ort-aar.")
    ] = None,
    ort_aar: Annotated[Path | None, typer.Option("--ort-aar", metavar="FILE", help="onnxruntime-android-VERSION.aar, with --ndk.")] = None,
    wheel: Annotated[
        Path | None, typer.Option("--wheel", metavar="FILE", help="The wheel of onnxruntime for --abi; else downloaded.")
    ] = None,
    compiler: Annotated[str | None, typer.Option("--cc", metavar="COMMAND", help="The C compiler, with its options.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build it even if the cache has it.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Build the agent in C with all that it needs, in a folder of its own. What is built already comes from the cache."""
    import shlex

    from archsearch.cli.tables import stderr
    from archsearch.errors import InputError
    from devices import recipes
    from devices.build import build as build_bundle
    from devices.build import cache_folder

    def say(text: str) -> None:
        stderr.print(f"{text} ...", style="dim", soft_wrap=True)

    try:
        command, cache = tuple(shlex.split(compiler or "")), cache_folder()
    except ValueError as error:
        raise InputError(f"--cc: {error}") from error
    if (ndk is None) != (ort_aar is None):
        raise InputError("--ndk and --ort-aar go together: the NDK has the compiler, the archive ONNX Runtime")
    if wheel is not None and (ndk is not None or abi is None):
        raise InputError("--wheel goes with --abi, and not with --ndk")
    if ndk is not None and ort_aar is not None:
        if command:
            raise InputError("--cc does not go with --ndk, which brings its compiler")
        recipe = recipes.bionic_recipe(abi or "arm64-v8a", cache, ndk=ndk, aar=ort_aar)
    elif abi is not None:
        recipe = recipes.glibc_recipe(abi, cache, compiler=command, wheel=wheel, say=say)
    else:
        recipe = recipes.host_recipe(command)
    bundle = build_bundle(recipe, cache=cache, force=force, say=say)
    print_json(document(bundle)) if json_output else print_bundle(bundle)


def document(bundle: Bundle) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "bundle": str(bundle.folder),
        "target": bundle.target,
        "abi": bundle.abi,
        "agent": bundle.agent,
        "runtime": bundle.runtime,
        "source_sha256": bundle.source_sha256,
        "compiler": bundle.compiler,
        "bytes": bundle.size_bytes,
        "files": bundle.files,
    }


FOR = {"host": "this machine", "glibc": "any Linux kernel on {abi}", "bionic": "Android on {abi}"}


def print_bundle(bundle: Bundle) -> None:
    """What it is and where it lies."""
    from archsearch.cli.tables import stdout

    stdout.print(
        f"agent {bundle.agent} with {bundle.runtime}, for {FOR[bundle.target].format(abi=bundle.abi)}: {bundle.size_bytes / 1e6:.0f} MB in"
    )
    stdout.print(str(bundle.folder), soft_wrap=True)
