"""`mae serve`: every setting is a flag."""

from __future__ import annotations

from typing import Any

import typer

from service.cli.options import settings_of


def serve(**options: Any) -> None:
    """Serve a model over HTTP.

    Every flag is also an environment variable: --max-batch is MAE_MAX_BATCH.

    Exit code: 0 after SIGTERM or Ctrl-C, when accepted requests are finished; 1 if the engine cannot be loaded, or is
    lost; 2 if an option or a setting is wrong, and then no server was started.
    """
    from model.engines.check import check_settings
    from service.logs import configure_logging
    from service.serving import run

    settings = settings_of(options)
    check_settings(settings.engine)
    if settings.index is not None:
        from service.lifecycle.served_index import check_index  # lazily: most services have no index

        check_index(settings.index)
    configure_logging(settings.log_format)
    raise typer.Exit(run(settings))
