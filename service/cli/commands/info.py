"""`mae info`: describes the model and the engine that `mae serve` would serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import orjson
import typer

from service.api.info import describe
from service.cli.local_pipeline import build_engine
from service.cli.options import settings_of
from service.cli.tables import print_values
from service.inference.served_name import apply_served_name


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")] = False,
    **options: Any,
) -> None:
    """Show what `mae serve` would serve: model, engine, parity, versions, limits and settings.

    The description is that of GET /info on a server with these options and this environment. The settings are added,
    except for the API keys.
    """
    settings = settings_of(options)
    engine = build_engine(settings).info
    index = None
    if settings.index is not None:
        from service.lifecycle.served_index import ServedIndex  # lazily, as `mae serve` does

        index = ServedIndex(settings.index, engine).describe()
    description = describe(apply_served_name(engine, settings.served_name), settings, index)
    description["settings"] = settings.model_dump(mode="json", exclude={"api_keys"})
    if as_json:
        print(orjson.dumps(description, option=orjson.OPT_INDENT_2).decode())
        return
    del description["limits"]  # settings and the engine's description hold them too
    print_values(_flatten(description))


def _flatten(description: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested names joined by dots, and their values as text."""
    for name, value in description.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list | tuple) else str(value)
