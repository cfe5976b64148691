"""`mae`: the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from model.engines.base import EngineBuildError
from model.source import WeightsError
from service.commands.options import with_options
from service.commands.serve import serve
from service.errors import ServiceError
from service.settings import InvalidSettings, Settings

app = typer.Typer(
    name="mae",
    help="Masked autoencoders: serve them, embed and reconstruct images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(with_options(serve, Settings.model_fields))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; what the user can mend is one line, not a traceback."""
    try:
        app(arguments)
    except (InvalidSettings, WeightsError, EngineBuildError, ServiceError, OSError) as error:
        print(f"mae: {error}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mae-serve {version('mae-serve')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Masked autoencoders: serve them, embed and reconstruct images."""
