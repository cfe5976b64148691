"""`mae serve`: every setting is a flag."""

from __future__ import annotations

from typing import Any

import typer

from service.commands.options import settings_of


def serve(**given: Any) -> None:
    """Serve a model over HTTP. Every flag is also an environment variable: --max-batch is MAE_MAX_BATCH."""
    from service.logs import configure_logging
    from service.server import run

    settings = settings_of(given)
    configure_logging(settings.log_format)
    raise typer.Exit(run(settings))
