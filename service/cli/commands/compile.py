"""`mae compile`: builds the engine ahead of time, so that a server with the same options starts at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from model.engines.base import EngineInfo, Quantisation
from service.cli.errors import CommandError
from service.cli.options import settings_of


def compile_engine(
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="<path>",
            help="Folder of photographs to make int8 by, which --precision auto then measures too.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")] = False,
    **given: Any,
) -> None:
    """Build the engine of these options into the engine cache, check it against eager float32, and show what was built.

    `mae serve` with the same options, weights, libraries and hardware then finds it. TensorRT's engines belong to the
    GPU and the driver that they were built with: run this where they will serve.
    """
    from model.engines.build import build

    settings = settings_of(given)
    progress = Console(stderr=True, markup=False, highlight=False)
    start = time.monotonic()
    said: list[str] = []

    def say(words: str) -> None:
        said.append(words)
        progress.print(f"{time.monotonic() - start:6.1f} s  {words}")

    info = build(settings.engine, say, calibrate).info
    if info.entry is None:
        reason = f" ({info.fallback})" if info.fallback else ""
        raise CommandError(f"{info.backend} runs the model as it is: there is nothing to build ahead{reason}")
    made = any(words.startswith("making ") for words in said)
    facts = _facts(info, settings.engine_cache / info.entry, made, time.monotonic() - start)
    if as_json:
        print(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if name == "auto":
            table.add_row("auto", info.auto.reason if info.auto else "-")
        elif name == "files":
            for file, size in fact.items():
                table.add_row(file, f"{size / 1e6:.1f} MB")
        elif name == "versions":
            table.add_row(name, ", ".join(f"{package} {number}" for package, number in fact.items()))
        else:
            table.add_row(name, "-" if fact is None else str(fact))
    Console(markup=False, highlight=False).print(table)


def _facts(info: EngineInfo, folder: Path, made: bool, seconds: float) -> dict[str, Any]:
    parity = info.parity
    return {
        "model": info.model_id,
        "backend": info.backend,
        "precision": info.precision,
        "computes": info.computes,
        "auto": info.auto and info.auto.model_dump(),
        "device": info.device,
        "max_batch": info.preferred_batch,
        "versions": info.versions,
        "centred_cosine": parity and parity.cosine,
        "mean_centred_cosine": parity and parity.mean_cosine,
        "psnr_db": parity and parity.psnr_db,
        "loss_difference": parity and parity.loss_difference,
        **_quantised(info.quantisation),
        "entry": str(folder),
        "made": "now" if made else "before",
        "seconds": round(seconds, 1),
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }


def _quantised(found: Quantisation | None) -> dict[str, Any]:
    """What int8 costs on photographs that it was not calibrated on."""
    if found is None:
        return {}
    return {
        "calibrated_on": found.photographs,
        "held_out": found.held_out,
        "held_out_mean_centred_cosine": found.parity.mean_cosine,
        "held_out_centred_cosine": found.parity.cosine,
        "held_out_psnr_db": found.parity.psnr_db,
        "held_out_loss_difference": found.parity.loss_difference,
    }
