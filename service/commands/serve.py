"""`mae serve`: every setting is a flag."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from service.settings import Settings, load_settings

ENGINE_SETTINGS = (
    "model",
    "weights",
    "norm_pix_loss",
    "image_size",
    "preprocess",
    "backend",
    "precision",
    "lanes",
    "max_batch",
    "engine_cache",
    "decode_threads",
    "max_pixels",
)
"""Those that also make sense without a server."""


def serve(**given: Any) -> None:
    """Serve a model over HTTP. Every flag is also an environment variable: --max-batch is MAE_MAX_BATCH."""
    from service.app import create_app
    from service.logs import configure_logging
    from service.server import serve as run

    settings = load_settings(**given)
    configure_logging(settings.log_format)
    raise typer.Exit(run(create_app(settings), settings.host, settings.port))


def with_settings(command: Any, names: tuple[str, ...] | None = None) -> Any:
    """Gives `command`, which takes **given, one option a setting: all of them, or those of `names`."""
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                str | None,
                typer.Option(f"--{name.replace('_', '-')}", help=field.description, show_default=_shown(field)),
            ],
        )
        for name, field in Settings.model_fields.items()
        if names is None or name in names
    ]
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*own, *options])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]}
    return command


def _shown(field: Any) -> str | bool:
    return False if field.default is None or field.default_factory else str(field.default) or False
