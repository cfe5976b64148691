"""The command line `mae`: its commands, their options, and how errors end them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated

import typer
from pydantic.fields import FieldInfo

from model.anomaly.fit import FitConfig
from model.checkpoints.errors import WeightsError
from model.engines.base import EngineBuildError
from model.evaluation.config import EvalConfig
from model.images.packs import PackError
from model.training.config import FinetuningRecipe, Recipe
from service.cli.commands.anomaly import fit, test
from service.cli.commands.bench import bench
from service.cli.commands.classify import classify
from service.cli.commands.compile import compile_engine
from service.cli.commands.convert import convert
from service.cli.commands.duplicates import duplicates
from service.cli.commands.embed import embed
from service.cli.commands.evaluate import evaluate
from service.cli.commands.explain import explain
from service.cli.commands.finetune import finetune
from service.cli.commands.index import index
from service.cli.commands.info import info
from service.cli.commands.pack import pack
from service.cli.commands.pretrain import pretrain
from service.cli.commands.reconstruct import reconstruct
from service.cli.commands.search import search
from service.cli.commands.serve import serve
from service.cli.errors import CommandError, describe_error
from service.cli.examples import format_examples
from service.cli.index_run import IndexParameters
from service.cli.options import ENGINE_OPTIONS, with_options
from service.errors import EngineLost, ServiceError
from service.index.errors import ImageIndexError
from service.parameters import (
    AnomalyParameters,
    ClassifyParameters,
    EmbedParameters,
    ExplainParameters,
    ReconstructParameters,
)
from service.settings import InvalidSettings, Settings

app = typer.Typer(
    name="mae",
    help="Masked autoencoders: serve, train and evaluate them; embed, classify and reconstruct images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
anomaly = typer.Typer(help="Find what is not normal in images: fit on normal images, and test.", no_args_is_help=True)
CORRECTABLE = (
    CommandError,
    InvalidSettings,
    WeightsError,
    EngineBuildError,
    PackError,
    ServiceError,
    ImageIndexError,
)
"""Errors that the user can correct."""
OF_THE_ROUTE = ("min_keep", "dtype", "encoding", "on_error")
"""The parameters of POST /embed that `mae embed` does not take: for load, and for forms of the answer."""
EMBED_OPTIONS = {name: field for name, field in EmbedParameters.model_fields.items() if name not in OF_THE_ROUTE}
ANOMALY_OPTIONS = {
    name: field for name, field in AnomalyParameters.model_fields.items() if name not in ("view", "on_error")
}
RECONSTRUCT_OPTIONS = {name: field for name, field in ReconstructParameters.model_fields.items() if name != "on_error"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits; an error that the user can correct is one line instead of a traceback."""
    try:
        app(arguments, prog_name="mae")
    except (
        CommandError,
        InvalidSettings,
        WeightsError,
        EngineBuildError,
        PackError,
        ServiceError,
        ImageIndexError,
        OSError,
    ) as error:
        print(f"mae: {describe_error(error)}", file=sys.stderr)
        if isinstance(error, EngineLost):
            from service.server import exit_now  # lazily: no command but `serve` needs uvicorn

            exit_now(2)  # a batch that does not return would be waited for
        sys.exit(2)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"mae-serve {version('mae-serve')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Masked autoencoders: serve, train and evaluate them; embed, classify and reconstruct images."""


def _add(
    command: Callable[..., None],
    fields: Mapping[str, FieldInfo],
    name: str | None = None,
    group: typer.Typer = app,
    prefix: str = "",
) -> None:
    """Adds a command with one option per field; its help is the docstring, unwrapped, and examples.

    The command belongs to `group`, whose words begin with `prefix`.
    """
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    epilog = format_examples(prefix + (name or command.__name__))
    group.command(name, help=unwrapped, epilog=epilog)(with_options(command, fields))


_add(serve, Settings.model_fields)
_add(embed, {**EMBED_OPTIONS, **ENGINE_OPTIONS})
_add(index, {**IndexParameters.model_fields, **ENGINE_OPTIONS})
_add(search, ENGINE_OPTIONS)
_add(duplicates, {})
_add(classify, {"top_k": ClassifyParameters.model_fields["top_k"], **ENGINE_OPTIONS})
_add(reconstruct, {**RECONSTRUCT_OPTIONS, **ENGINE_OPTIONS})
_add(explain, {**ExplainParameters.model_fields, **ENGINE_OPTIONS})
_add(info, ENGINE_OPTIONS)
_add(bench, {name: field for name, field in ENGINE_OPTIONS.items() if name != "model"})
_add(compile_engine, ENGINE_OPTIONS, name="compile")
_add(convert, {})
_add(pack, {})
_add(pretrain, Recipe.model_fields)
_add(evaluate, {**EvalConfig.model_fields, **ENGINE_OPTIONS})
_add(finetune, FinetuningRecipe.model_fields)
_add(fit, {**FitConfig.model_fields, **ENGINE_OPTIONS}, group=anomaly, prefix="anomaly ")
_add(test, {**ANOMALY_OPTIONS, **ENGINE_OPTIONS}, group=anomaly, prefix="anomaly ")
app.add_typer(anomaly, name="anomaly")
