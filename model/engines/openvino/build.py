"""An engine of OpenVINO: in the precision that was asked for, or in the one that measuring recommends."""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from model.engines import parity
from model.engines.base import EngineBuildError, EngineInfo, MeasuredPrecision, Precision
from model.engines.cache import EngineCache, fingerprint
from model.engines.context import BuildContext, gated, info_of, obtain, versions
from model.engines.cpu import available_cpus, processor
from model.engines.entry import read_facts, read_reference
from model.engines.fingerprint import code_digest
from model.engines.job import ConversionJob
from model.engines.openvino.arithmetic import sample_precision
from model.engines.openvino.batch_size import preferred_batch, warm
from model.engines.openvino.calibration import calibration_in
from model.engines.openvino.engine import PREFERRED_BATCH, OpenVINOEngine
from model.engines.openvino.precision import CLOSEST_FIRST, choose, core_seconds_of, keep_choice, measure, read_choice
from model.engines.openvino.quantise import read_quantisation, require_nncf

log = logging.getLogger(__name__)


def build_openvino(plan: BuildContext) -> OpenVINOEngine:
    """Loads or makes the engine, holds it to its bar, and warms it up.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: the engine cannot be made, or there is no int8 engine where one is needed.
        ParityError: it can, but it does not compute what the model computes.
    """
    graphs = _Graphs(plan)
    if plan.spec.precision == "auto":
        engine = _fastest(plan, graphs)
    elif plan.spec.precision == "int8":
        engine = _engine(plan, "int8", graphs.int8())
    else:
        engine = _engine(plan, plan.spec.precision, graphs.float32())
    if plan.spec.max_batch is None:
        engine.prefer(preferred_batch(engine, EngineCache(plan.spec.cache), plan.progress))
    warm(engine)
    return engine


class _Graphs:
    """Entries of the cache: one in float32, which bf16 is computed from as well, and those in int8."""

    def __init__(self, plan: BuildContext) -> None:
        self._plan = plan
        self._cache = EngineCache(plan.spec.cache)
        self._ingredients: dict[str, object] = {
            **asdict(plan.model),
            "path": plan.source.digest,
            "code": code_digest(),
            "versions": {name: version(name) for name in ("openvino", "torch")},
            "machine": platform.machine(),
        }
        self.name = f"openvino-{fingerprint(self._ingredients)}"

    def float32(self) -> Path:
        """Made if need be."""
        return obtain(self._plan, self.name, ConversionJob(self._plan.model, "openvino"))

    def int8(self) -> Path:
        """Made from `spec.calibrate`, or the one that was made last for int8 from whatever photographs.

        A note in the cache leads from all ingredients but the photographs to that entry: a server has not got them.
        """
        note = self._note("int8")
        if self._plan.spec.calibrate is None:
            return self.noted_int8(self._noted(note), "int8")
        folder = self._quantised()
        _held_out_gate(folder, self._plan)
        self._cache.write_note(note, {"entry": folder.name})
        return folder

    def int8_for_auto(self) -> str | None:
        """The entry that `mae compile --precision auto --calibrate` has named; None if there was no such command.

        This note is auto's own: int8 that was made for a trial changes nothing for those who did not ask for it.
        """
        note = self._note("auto-int8")
        if self._plan.spec.calibrate is None:
            return self._noted(note)
        name = self._quantised().name
        self._cache.write_note(note, {"entry": name})
        return name

    def noted_int8(self, name: str | None, precision: str) -> Path:
        """The folder of that entry, which only photographs can make anew."""
        found = None if name is None else self._cache.find(name)
        if found is None:
            raise EngineBuildError(
                f"the engine cache {self._plan.spec.cache} has no intact int8 engine of {self._plan.source.name} for "
                f"these options: mae compile --precision {precision} --calibrate FOLDER makes one from photographs"
            )
        return found

    def _quantised(self) -> Path:
        assert self._plan.spec.calibrate is not None
        nncf, calibration = require_nncf(), calibration_in(self._plan.spec.calibrate)
        made_of = {**self._ingredients, "photographs": calibration.digest, "nncf": nncf}
        job = ConversionJob(self._plan.model, "openvino", "int8", photographs=calibration)
        return obtain(self._plan, f"openvino-int8-{fingerprint(made_of)}", job)

    def _note(self, kind: str) -> str:
        return f"{kind}-{fingerprint(self._ingredients)}"

    def _noted(self, note: str) -> str | None:
        said = self._cache.read_note(note)
        return str(said["entry"]) if said and "entry" in said else None


def _fastest(plan: BuildContext, graphs: _Graphs) -> OpenVINOEngine:
    """The engine that auto comes to: by the note of an earlier start, or else by measuring, which is noted."""
    cache, int8 = EngineCache(plan.spec.cache), graphs.int8_for_auto()
    name = _note_of(plan, graphs.name, int8)
    found = read_choice(cache, name)
    if found is not None:
        if found.precision == "int8":
            engine = _engine(plan, "int8", graphs.noted_int8(int8, "auto"))
        else:
            engine = _engine(plan, found.precision, graphs.float32())
    else:
        engines, left_out = _candidates(plan, graphs, int8)
        rates: dict[Precision, float] = {}
        if len(engines) > 1:
            plan.progress(f"measuring which is fastest: {', '.join(engines)}")
            lanes = engines["fp32"].lanes
            rates = measure({one: partial(core_seconds_of, engine) for one, engine in engines.items()}, lanes)
        best = choose(rates) if rates else "fp32"
        found = keep_choice(cache, name, MeasuredPrecision(precision=best, images_per_core_s=rates, left_out=left_out))
        engine = engines[found.precision]
    log.info("PRECISION=auto serves %s: %s", found.precision, found.reason)
    engine.info = engine.info.model_copy(update={"auto": found})
    return engine


def _candidates(
    plan: BuildContext, graphs: _Graphs, int8: str | None
) -> tuple[dict[Precision, OpenVINOEngine], dict[Precision, str]]:
    """The engines that have passed their gates, and of the others why they have not.

    Raises:
        ParityError: float32 has not.
    """
    there: dict[Precision, bool] = {"fp32": True, "bf16": sample_precision("bf16") == "bf16", "int8": int8 is not None}
    engines: dict[Precision, OpenVINOEngine] = {}
    left_out: dict[Precision, str] = {}
    for precision in CLOSEST_FIRST:
        if not there[precision]:
            continue
        folder = graphs.noted_int8(int8, "auto") if precision == "int8" else graphs.float32()
        try:
            engines[precision] = _engine(plan, precision, folder)
        except parity.ParityError as error:
            if precision == "fp32":
                raise
            left_out[precision] = str(error)
            log.warning("PRECISION=auto leaves out %s: %s", precision, error)
    return engines, left_out


def _note_of(plan: BuildContext, entry: str, int8: str | None) -> str:
    """What another answer could depend on, in one name; the bars too, which decide who takes part."""
    ingredients: dict[str, object] = {
        "processor": processor(),
        "bf16": sample_precision("bf16"),
        "lanes": _lanes_and_threads(plan),
        "versions": versions(),
        "entry": entry,
        "int8": int8,
        "bars": {precision: asdict(plan.spec.bar(precision)) for precision in CLOSEST_FIRST},
    }
    return f"precision-{fingerprint(ingredients)}"


def _engine(plan: BuildContext, precision: Precision, folder: Path) -> OpenVINOEngine:
    """The engine of `folder` in that precision, past its gate."""
    if precision == "int8":
        _held_out_gate(folder, plan)
    plan.progress(f"compiling {plan.source.name} for this processor in {precision}")
    engine = OpenVINOEngine(folder, _info(plan, precision, folder))
    if engine.info.computes != precision:
        log.warning("PRECISION=%s: OpenVINO computes %s on this CPU", precision, engine.info.computes)
    gated(engine, read_reference(folder), plan)
    return engine


def _info(plan: BuildContext, precision: Precision, folder: Path) -> EngineInfo:
    lanes, threads = _lanes_and_threads(plan)
    batch = plan.spec.max_batch or PREFERRED_BATCH
    facts = read_facts(folder)
    info = info_of(plan.source, facts, plan.choice, precision, lanes, threads, batch, folder.name)
    return info.model_copy(update={"quantisation": read_quantisation(folder)}) if precision == "int8" else info


def _lanes_and_threads(plan: BuildContext) -> tuple[int, int]:
    lanes = plan.spec.lanes or available_cpus()
    return lanes, max(1, available_cpus() // lanes)


def _held_out_gate(folder: Path, plan: BuildContext) -> None:
    parity.require(read_quantisation(folder).parity, plan.spec.bar("int8"), " of photographs held out")
