"""`mae`: the command line."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError
from model.evaluation.config import EvalConfig
from model.training.config import FinetuningRecipe, Recipe
from service.cli.commands.bench import bench
from service.cli.commands.compile import compile_engine
from service.cli.commands.convert import convert
from service.cli.commands.embed import embed
from service.cli.commands.evaluate import evaluate
from service.cli.commands.finetune import finetune
from service.cli.commands.info import info
from service.cli.commands.pretrain import pretrain
from service.cli.commands.reconstruct import reconstruct
from service.cli.commands.serve import serve
from service.cli.errors import CommandError
from service.cli.options import ENGINE_OPTIONS, with_options
from service.errors import ServiceError
from service.parameters import EmbedParameters, ReconstructParameters
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
        app(arguments, prog_name="mae")
    except (CommandError, InvalidSettings, WeightsError, EngineBuildError, ServiceError, OSError) as error:
        print(f"mae: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


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


def _add(command: Callable[..., None], fields: Mapping[str, FieldInfo], name: str | None = None) -> None:
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(name, help=unwrapped)(with_options(command, fields))


_add(serve, Settings.model_fields)
_add(embed, {**EMBED_OPTIONS, **ENGINE_OPTIONS})
_add(reconstruct, {**ReconstructParameters.model_fields, **ENGINE_OPTIONS})
_add(info, ENGINE_OPTIONS)
_add(bench, {name: field for name, field in ENGINE_OPTIONS.items() if name != "model"})
_add(compile_engine, ENGINE_OPTIONS, name="compile")
_add(convert, {})
_add(pretrain, Recipe.model_fields)
_add(evaluate, {**EvalConfig.model_fields, **ENGINE_OPTIONS})
_add(finetune, FinetuningRecipe.model_fields)
