"""`mae`: the command line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from model.engines.base import EngineBuildError
from model.source import WeightsError
from service.commands.embed import embed
from service.commands.options import ENGINE_OPTIONS, with_options
from service.commands.serve import serve
from service.commands.vectors import VectorFileError
from service.errors import ServiceError
from service.schemas import EmbedParameters
from service.settings import InvalidSettings, Settings

app = typer.Typer(
    name="mae",
    help="Masked autoencoders: serve them, embed and reconstruct images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
EMBED_OPTIONS = {name: field for name, field in EmbedParameters.model_fields.items() if name != "encoding"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; what the user can mend is one line, not a traceback."""
    try:
        app(arguments)
    except (InvalidSettings, WeightsError, EngineBuildError, VectorFileError, ServiceError, OSError) as error:
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


def _add(command: Callable[..., None], fields: Mapping[str, FieldInfo]) -> None:
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(help=unwrapped)(with_options(command, fields))


_add(serve, Settings.model_fields)
_add(embed, {**EMBED_OPTIONS, **ENGINE_OPTIONS})
