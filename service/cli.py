"""`mae`: the command line."""

from __future__ import annotations

import sys

import typer

from model.engines.base import EngineBuildError
from model.source import WeightsError
from service.commands.serve import serve, with_settings
from service.settings import InvalidSettings

app = typer.Typer(
    name="mae",
    help="Masked autoencoders: serve them, embed and reconstruct images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(with_settings(serve))


@app.callback()
def _root() -> None:
    """Masked autoencoders: serve them, embed and reconstruct images."""


def main() -> None:
    """Runs a command; what the user can mend is one line, not a traceback."""
    try:
        app()
    except (InvalidSettings, WeightsError, EngineBuildError) as error:
        print(f"mae: {error}", file=sys.stderr)
        sys.exit(2)
