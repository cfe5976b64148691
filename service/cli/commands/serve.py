"""`mae serve`: every setting is a flag."""

from __future__ import annotations

from typing import Any

import typer

from service.cli.options import settings_of


def serve(**options: Any) -> None:
    """Serve a model over HTTP. Every flag is also an environment variable: --max-batch is MAE_MAX_BATCH."""
    from service.logs import configure_logging
    from service.serving import run

    settings = settings_of(options)
    configure_logging(settings.log_format)
    raise typer.Exit(run(settings))
