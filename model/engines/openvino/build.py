"""Building an OpenVINO engine, in the precision that was asked for or, under auto, in the fastest."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

from model.engines.base import EngineInfo, MeasuredPrecision, Precision
from model.engines.cache import EngineCache, fingerprint
from model.engines.context import BuildContext, installed_versions
from model.engines.cpu import available_cpus, cpu_name
from model.engines.entry import read_model, read_reference
from model.engines.job import LoadedModel
from model.engines.measure import keep_choice, measure_rates, read_choice, time_batch
from model.engines.openvino.arithmetic import sample_precision
from model.engines.openvino.curve_measurement import OpenVINOMeasurement
from model.engines.openvino.engine import DEFAULT_BATCH, OpenVINOEngine
from model.engines.openvino.entries import GraphEntries, require_held_out_parity
from model.engines.openvino.joined_lane import JoinedLaneCheck, wants_joined_lane
from model.engines.openvino.precision import CLOSEST_FIRST, choose_precision, core_seconds, is_clear_choice
from model.engines.openvino.quantise import read_quantisation
from model.engines.outputs import EngineOutputs, collect_outputs
from model.engines.parity import ParityError, measure_parity, require_tolerance

log = logging.getLogger(__name__)


def build_openvino(context: BuildContext) -> tuple[OpenVINOEngine, OpenVINOMeasurement | None]:
    """Loads or makes the engine, checks its parity, and warms it up.

    Returns:
        The engine, and what is to be measured once it is ready; None if an earlier start has left nothing.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: the engine cannot be made, or there is no int8 engine where one is needed.
        ParityError: the engine does not compute what the model computes.
    """
    settings, entries = context.settings, GraphEntries(context)
    choice: MeasuredPrecision | None = None
    if settings.precision == "auto":
        built, choice = _build_fastest(context, entries)
        log.info("PRECISION=auto serves %s: %s", choice.precision, choice.reason)
    else:
        built = _build(context, settings.precision, _read_entry(_entry_for(settings.precision, entries)))
        if built.engine.info.computes != settings.precision:
            log.warning(
                "PRECISION=%s: OpenVINO computes %s on this CPU", settings.precision, built.engine.info.computes
            )
    engine = built.engine
    engine.info = engine.info.model_copy(update={"auto": choice})
    check = built.check if wants_joined_lane(settings.joined_lane, engine.info.lanes, built.folder) else None
    measurement = OpenVINOMeasurement(engine, EngineCache(settings.engine_cache), settings.max_batch, check)
    time_batch(engine, 1)  # the first image compiles the kernels of its shape, so its seconds do not count
    return engine, measurement if measurement.is_needed else None


class _Entry(NamedTuple):
    """An entry of the engine cache, and what of it Python reads."""

    folder: Path
    model: LoadedModel
    reference: EngineOutputs


class _Built(NamedTuple):
    """An engine that has passed its parity check."""

    engine: OpenVINOEngine
    folder: Path
    check: JoinedLaneCheck


def _entry_for(precision: Precision, entries: GraphEntries) -> Path:
    return entries.int8() if precision == "int8" else entries.float32()


def _build_fastest(context: BuildContext, entries: GraphEntries) -> tuple[_Built, MeasuredPrecision]:
    """Builds the engine that auto chooses: as an earlier start chose, or else by measuring."""
    cache, int8 = EngineCache(context.settings.engine_cache), entries.int8_for_auto()
    name = _choice_name(context, entries.name, int8)
    choice = read_choice(cache, name, MeasuredPrecision)
    if choice is not None:
        folder = entries.find_int8(int8, "auto") if choice.precision == "int8" else entries.float32()
        return _build(context, choice.precision, _read_entry(folder)), choice
    engines, left_out = _build_candidates(context, entries, int8)
    rates: dict[Precision, float] = {}
    if len(engines) > 1:
        context.progress(f"measuring which is fastest: {', '.join(engines)}")
        lanes = engines["fp32"].engine.info.lanes
        rates = measure_rates(
            {precision: partial(core_seconds, built.engine) for precision, built in engines.items()},
            lanes,
            is_clear=is_clear_choice,
        )
    best = choose_precision(rates) if rates else "fp32"
    choice = keep_choice(cache, name, MeasuredPrecision(precision=best, images_per_core_s=rates, left_out=left_out))
    return engines[choice.precision], choice


def _build_candidates(
    context: BuildContext, entries: GraphEntries, int8: str | None
) -> tuple[dict[Precision, _Built], dict[Precision, str]]:
    """Builds the engines that pass their parity checks; the others are left out, with the reason.

    bf16 is a candidate only where the CPU has the instructions: emulation saves nothing, and loses the same bits.

    Raises:
        ParityError: float32 does not pass.
    """
    available: dict[Precision, bool] = {
        "fp32": True,
        "bf16": sample_precision("bf16") == "bf16",
        "int8": int8 is not None,
    }
    candidates = {
        precision: _read_entry(entries.find_int8(int8, "auto") if precision == "int8" else entries.float32())
        for precision in CLOSEST_FIRST
        if available[precision]
    }
    engines: dict[Precision, _Built] = {}
    left_out: dict[Precision, str] = {}
    # One engine is compiled and checked by little more than one CPU, so the candidates are built at the same time.
    with ThreadPoolExecutor(available_cpus()) as pool:
        builds = {precision: pool.submit(_build, context, precision, entry) for precision, entry in candidates.items()}
    for precision, finished in builds.items():
        try:
            engines[precision] = finished.result()
        except ParityError as error:
            if precision == "fp32":
                raise
            left_out[precision] = str(error)
            log.warning("PRECISION=auto leaves out %s: %s", precision, error)
    return engines, left_out


def _choice_name(context: BuildContext, entry: str, int8: str | None) -> str:
    """The name of auto's choice in the cache: a fingerprint of all that the choice depends on.

    The tolerances are part of it, since they decide which precisions take part.
    """
    ingredients: dict[str, object] = {
        "processor": cpu_name(),
        "bf16": sample_precision("bf16"),
        "lanes": _lanes_and_threads(context),
        "versions": installed_versions(),
        "entry": entry,
        "int8": int8,
        "tolerances": {precision: asdict(context.tolerance(precision)) for precision in CLOSEST_FIRST},
    }
    return f"precision-{fingerprint(ingredients)}"


def _read_entry(folder: Path) -> _Entry:
    """Reads an entry. Only one thread of the process may do so.

    NumPy parses the headers of .npy files with `ast`, which in CPython 3.11 may fail with a SystemError if two threads
    use it at the same time.
    """
    return _Entry(folder, read_model(folder), read_reference(folder))


def _build(context: BuildContext, precision: Precision, entry: _Entry) -> _Built:
    """Builds the engine of an entry's graphs, and checks its parity."""
    folder, model, reference = entry
    if precision == "int8":
        require_held_out_parity(folder, context)
    context.progress(f"compiling {context.source.name} for this CPU in {precision}")
    engine = OpenVINOEngine(folder, _info(context, precision, folder, model))
    info = engine.info
    context.progress(f"comparing the engine in {precision} with eager float32")
    check = JoinedLaneCheck(
        info.config, info.computes, collect_outputs(engine), reference, context.tolerance(info.computes)
    )
    parity = require_tolerance(measure_parity(check.lanes, reference, info.config), check.tolerance)
    engine.info = info.model_copy(update={"parity": parity})
    return _Built(engine, folder, check)


def _info(context: BuildContext, precision: Precision, folder: Path, model: LoadedModel) -> EngineInfo:
    lanes, threads = _lanes_and_threads(context)
    return context.describe(
        model,
        precision,
        lanes=lanes,
        threads_per_lane=threads,
        max_batch_size=context.settings.max_batch or DEFAULT_BATCH,
        entry=folder.name,
        quantisation=read_quantisation(folder) if precision == "int8" else None,
    )


def _lanes_and_threads(context: BuildContext) -> tuple[int, int]:
    lanes = context.settings.lanes or available_cpus()
    return lanes, max(1, available_cpus() // lanes)
