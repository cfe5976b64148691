"""`mae info`: what would be served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from service.api.info import describe
from service.cli.local_pipeline import build_engine
from service.cli.options import settings_of


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")] = False,
    **given: Any,
) -> None:
    """Show what would be served: model, engine, parity, versions, limits and settings.

    The same as GET /info of a server with these options and this environment, and every setting but the keys.
    """
    settings = settings_of(given)
    facts = describe(build_engine(settings).info, settings)
    facts["settings"] = settings.model_dump(mode="json", exclude={"api_keys"})
    if as_json:
        print(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    del facts["limits"]  # all of them are settings, or facts of the engine
    for name, value in _flat(facts):
        table.add_row(name, value)
    Console(markup=False, highlight=False).print(table)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, fact in facts.items():
        if isinstance(fact, Mapping):
            yield from _flat(fact, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(fact)


def _text(fact: object) -> str:
    if fact is None:
        return "-"
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return ", ".join(map(str, fact)) or "-" if isinstance(fact, list | tuple) else str(fact)
