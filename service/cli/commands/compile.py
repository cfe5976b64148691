"""`mae compile`: builds the engine ahead of time, so that a server with the same options starts at once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from model.engines.base import EngineError, EngineInfo, Quantisation
from service.cli.errors import CommandError
from service.cli.options import settings_of
from service.cli.tables import print_values


def compile_engine(
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="<path>",
            help="Folder of photographs to calibrate int8 with, in place of the packaged ones; --precision auto then "
            "measures int8 too.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object instead of a table.")] = False,
    **options: Any,
) -> None:
    """Build the engine of these options into the engine cache, compare it with eager float32, and describe it.

    `mae serve` with the same options, weights, libraries and hardware then finds the engine there. A TensorRT engine
    works only on the kind of GPU and with the driver that it was built with: run this command where it will serve.
    """
    from model.engines.backend import choose_backend
    from model.engines.build import build
    from model.engines.check import require_precision
    from model.engines.measure import finish_measurement

    settings = settings_of(options)
    choice = choose_backend(settings.backend)
    require_precision(choice, settings.precision, calibrate is not None)
    if (choice.backend, choice.device) == ("torch", "cpu"):
        reason = f" ({choice.fallback})" if choice.fallback else ""
        raise CommandError(f"torch runs the model as it is: there is nothing to build ahead{reason}")
    console = Console(stderr=True, markup=False, highlight=False)
    start = time.monotonic()
    steps: list[str] = []

    def show_step(step: str) -> None:
        steps.append(step)
        console.print(f"{time.monotonic() - start:6.1f} s  {step}")

    served = build(settings.engine, show_step, calibrate)
    if served.info.batch_curves is None and served.measurement is not None:
        show_step("measuring the seconds of batches")
        try:
            finish_measurement(served)
        except EngineError as error:
            raise CommandError(f"the engine failed: {error}") from error
    info = served.info
    if info.entry is None:
        reason = f" ({info.fallback})" if info.fallback else ""
        if info.torch is not None:
            raise CommandError(f"torch runs in mode {info.torch.mode}, which leaves nothing to build ahead{reason}")
        raise CommandError(f"{info.backend} runs the model as it is: there is nothing to build ahead{reason}")
    is_new = any(step.startswith("making ") for step in steps)
    description = _describe(info, settings.engine_cache / info.entry, is_new, time.monotonic() - start)
    if as_json:
        print(orjson.dumps(description, option=orjson.OPT_INDENT_2).decode())
    else:
        print_values(_table_rows(description, info))


def _describe(info: EngineInfo, entry: Path, is_new: bool, seconds: float) -> dict[str, Any]:
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
        **_describe_quantisation(info.quantisation),
        "entry": str(entry),
        "made": "now" if is_new else "before",
        "seconds": round(seconds, 1),
        "files": {path.name: path.stat().st_size for path in sorted(entry.iterdir())},
    }


def _describe_quantisation(quantisation: Quantisation | None) -> dict[str, Any]:
    """How close int8 is to float32 on photographs that it was not calibrated with; empty for other precisions."""
    if quantisation is None:
        return {}
    return {
        "calibrated_on": quantisation.photographs,
        "held_out": quantisation.held_out,
        "held_out_mean_centred_cosine": quantisation.parity.mean_cosine,
        "held_out_centred_cosine": quantisation.parity.cosine,
        "held_out_psnr_db": quantisation.parity.psnr_db,
        "held_out_loss_difference": quantisation.parity.loss_difference,
    }


def _table_rows(description: Mapping[str, Any], info: EngineInfo) -> Iterator[tuple[str, str]]:
    for name, value in description.items():
        if name == "auto":
            yield name, info.auto.reason if info.auto else "-"
        elif name == "files":
            for file, size in value.items():
                yield file, f"{size / 1e6:.1f} MB"
        elif name == "versions":
            yield name, ", ".join(f"{package} {number}" for package, number in value.items())
        else:
            yield name, "-" if value is None else str(value)
