"""Building an engine from its settings, up to its parity check."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from model.checkpoints.heads import Head
from model.checkpoints.heads_file import read_heads
from model.checkpoints.locate import locate
from model.engines.backend import choose_backend
from model.engines.base import BackendChoice, CurveMeasurement, Engine, EngineBuildError, ServedModel, TensorRTError
from model.engines.check import require_precision
from model.engines.context import BuildContext
from model.engines.cuda import identity
from model.engines.entry import read_head
from model.engines.job import ModelSpec
from model.engines.measure import time_batch
from model.engines.openvino.build import build_openvino
from model.engines.settings import EngineSettings

log = logging.getLogger(__name__)


def build(
    settings: EngineSettings, progress: Callable[[str], None] = log.info, calibrate: Path | None = None
) -> ServedModel:
    """Loads or makes the engine, warms it up, compares it with eager float32, and measures the seconds of an image.

    Where `settings.backend` is `auto` and TensorRT cannot build or load the model, torch serves on the GPU instead, and
    `EngineInfo.fallback` says why. An engine that fails its parity check is never replaced in silence.

    Args:
        settings: the options of the engine.
        progress: called with a sentence at every step.
        calibrate: a folder of photographs to make an int8 engine from, for PRECISION=int8 or auto. Without it, int8
            takes the engine that was made before, or else is calibrated on the packaged photographs.

    Raises:
        WeightsError: the weights are missing, foreign or damaged.
        EngineBuildError: the engine cannot be made.
        ParityError: the engine does not compute what the model computes.
    """
    source = locate(settings.weights, settings.model)
    heads = read_heads(source.path)
    preset = None if source.is_preset(settings.model) else settings.model
    model = ModelSpec(
        str(source.path), preset, settings.norm_pix_loss, settings.image_size, settings.heads, settings.preprocess
    )

    def build_by(choice: BackendChoice) -> tuple[Engine, CurveMeasurement | None]:
        if choice.fallback:
            log.warning("serving by %s on %s: %s", choice.backend, choice.device, choice.fallback)
        return _build(BuildContext(settings, source, heads, model, choice, calibrate, progress))

    try:
        engine, measurement = build_by(choose_backend(settings.backend))
    except TensorRTError as error:
        if settings.backend != "auto":
            raise
        engine, measurement = build_by(BackendChoice("torch", "cuda", f"TensorRT has failed: {error}"))
    for note in engine.info.notes:
        log.warning("%s: %s", source.name, note)
    if heads.head is None and engine.info.head is not None:
        heads = replace(heads, head=_foreign_head(settings, model, engine))
    progress("measuring how long one image takes")
    return ServedModel(engine, heads, image_seconds=time_batch(engine, 1), measurement=measurement)


def _foreign_head(settings: EngineSettings, model: ModelSpec, engine: Engine) -> Head | None:
    """The classification head of a checkpoint that is not in our own format, which only torch reads.

    Whoever made the engine's entry has kept the head there. Without an entry torch is loaded anyway.
    """
    if engine.info.entry is not None:
        return read_head(settings.engine_cache / engine.info.entry)
    from model.engines.reference import load_model

    return load_model(model)[0].heads.head


def _build(context: BuildContext) -> tuple[Engine, CurveMeasurement | None]:
    """The engine, and what is to be measured once it is ready: None for all backends but OpenVINO."""
    precision, choice = context.settings.precision, context.choice
    if choice.device == "cuda" and (count := identity.visible_gpus()) > 1:
        log.warning(
            "%d GPUs are visible, and this process uses the first: start one process for each GPU, "
            "with CUDA_VISIBLE_DEVICES=0, 1, … and a port of its own",
            count,
        )
    if context.calibrate is not None and precision not in ("int8", "auto"):
        raise EngineBuildError("--calibrate is for PRECISION=int8 or auto")
    if choice.backend == "openvino":
        return build_openvino(context)
    require_precision(choice, precision, calibrates=context.calibrate is not None)
    # Imported here, since both import torch, which no OpenVINO server needs.
    if choice.backend == "tensorrt":
        from model.engines.cuda.build import build_tensorrt

        return build_tensorrt(context), None
    from model.engines.torch_build import build_torch

    return build_torch(context), None
