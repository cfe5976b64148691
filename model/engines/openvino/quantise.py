"""Post-training quantisation: OpenVINO's graphs in eight bits, by NNCF, calibrated on photographs.

Only photographs will do: the ranges of drawn images cut off values that photographs reach, and the fixed images of the
parity check, which are drawn, would not show it. So a third of the photographs plays no part in the calibration, and
the engine is measured on that third.

The range of an activation is the least and the greatest value that any of the photographs gives. NNCF's default, the
means of these values over the photographs, cuts off what an unusual image gives: so the packaged model failed its
parity check on drawn images. SmoothQuant (Xiao et al. 2022) divides the difficulty between activations and weights by
`SMOOTHING`: the value of the paper is closer to float32 here than NNCF's default of 0.95.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.engines.base import Engine, EngineBuildError, EngineInfo, Quantisation
from model.engines.cpu import available_cpus
from model.engines.fixed_images import visible_quarter
from model.engines.job import MIN_PHOTOGRAPHS, Calibration, LoadedModel
from model.engines.openvino.engine import OpenVINOEngine
from model.engines.openvino.graphs import DECODER_FILE, ENCODER_FILE
from model.engines.openvino.runtime import import_openvino
from model.engines.outputs import collect_outputs
from model.engines.parity import measure_parity
from model.images.errors import ImageError
from model.images.open_image import open_image
from model.images.preprocess import patches_of
from model.masking import all_indices, restore_indices_for

log = logging.getLogger(__name__)
QUANTISATION = "quantisation.json"
HELD_OUT_EVERY = 3
"""Every third photograph is held out."""
BASE_SECONDS, RUNS_PER_PHOTOGRAPH = 10, 6
"""A quantisation takes about BASE_SECONDS, and for each photograph the time of RUNS_PER_PHOTOGRAPH whole images in
float32."""
FIRST_SEED = 1000
"""The first seed of the masks for calibration; the masks for measuring have seeds from 0."""
SMOOTHING = 0.5
"""SmoothQuant's alpha: 0 leaves the activations' outliers where they are, 1 moves them into the weights."""


def require_nncf() -> str:
    """Returns NNCF's version.

    Raises:
        EngineBuildError: it is not installed.
    """
    if not find_spec("nncf"):
        raise EngineBuildError("making an int8 engine needs the package nncf: pip install 'nncf>=3.4'")
    return version("nncf")


def quantise_and_measure(
    calibration: Calibration,
    model: LoadedModel,
    reference: Engine,
    source: Path,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """Quantises the graphs in `source` into `folder`, and writes their distance from eager float32 beside them.

    Args:
        calibration: the photographs.
        model: the model's properties.
        reference: the engine in eager float32.
        source: holds the float32 graphs.
        folder: exists.
        progress: called with a sentence at every step.

    Raises:
        EngineBuildError: too few photographs can be read.
    """
    photographs = read_photographs(calibration.paths, model.config, model.preprocessing)
    used, held_out = calibration_part(photographs), held_out_part(photographs)
    quantise(source, folder, used, model.config, progress)
    progress(f"measuring the quantised {model.config.name} on {len(held_out)} other photographs")
    engine = OpenVINOEngine(folder, _int8_info(reference.info))
    quantisation = Quantisation(
        photographs=len(used),
        held_out=len(held_out),
        digest=calibration.digest,
        nncf=version("nncf"),
        parity=measure_parity(
            collect_outputs(engine, images=held_out), collect_outputs(reference, images=held_out), model.config
        ),
    )
    (folder / QUANTISATION).write_text(quantisation.model_dump_json(indent=1))


def read_quantisation(folder: Path) -> Quantisation:
    """Reads the description that `quantise_and_measure` wrote."""
    return Quantisation(**json.loads((folder / QUANTISATION).read_text()))


def read_photographs(paths: Sequence[str], config: MAEConfig, preprocessing: Preprocessing) -> Bytes:
    """Reads photographs as patches uint8 [R, N, P]; unreadable ones are named in the log and left out.

    Raises:
        EngineBuildError: too few can be read.
    """
    patches = []
    for path in paths:
        try:
            patches.append(patches_of(open_image(path), config, preprocessing))
        except ImageError as error:
            log.warning("%s is left out of the calibration: %s", path, error)
    if len(patches) < MIN_PHOTOGRAPHS:
        raise EngineBuildError(
            f"int8 is calibrated on at least {MIN_PHOTOGRAPHS} photographs; only {len(patches)} could be read"
        )
    return np.stack(patches)


def calibration_part(photographs: Bytes) -> Bytes:
    """The photographs that are calibrated on."""
    part: Bytes = photographs[np.arange(len(photographs)) % HELD_OUT_EVERY != 0]
    return part


def held_out_part(photographs: Bytes) -> Bytes:
    """The photographs that are measured on."""
    return photographs[::HELD_OUT_EVERY]


def quantise(
    source: Path, folder: Path, photographs: Bytes, config: MAEConfig, progress: Callable[[str], None]
) -> None:
    """Reads float32 graphs from `source`, and writes them in eight bits into `folder`.

    Args:
        source: holds the float32 graphs.
        folder: exists.
        photographs: uint8 [R, N, P]; each is encoded whole, and with a quarter of its patches visible.
        config: the model's sizes.
        progress: called with a sentence that says how long it will take.
    """
    openvino = import_openvino()  # first: NNCF would import it with its telemetry
    import nncf

    nncf.set_log_level(logging.WARNING)
    core = openvino.Core()
    encode = core.compile_model(str(source / ENCODER_FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    quarter = visible_quarter(config, len(photographs), FIRST_SEED)
    everything = all_indices(config.num_patches)[None]
    seconds = _estimate_seconds(lambda: encode([photographs[:1], everything]), len(photographs))
    progress(f"quantising {config.name} to eight bits on {len(photographs)} photographs: about {seconds} s")
    inputs: dict[str, list[list[Any]]] = {ENCODER_FILE: [], DECODER_FILE: []}
    for patches, visible_indices in zip(photographs[:, None], quarter[:, None], strict=True):
        masked = [np.take_along_axis(patches, visible_indices[..., None], axis=1), visible_indices]
        inputs[ENCODER_FILE] += [[patches, everything], masked]
        inputs[DECODER_FILE].append(
            [encode(masked)[1].copy(), restore_indices_for(visible_indices, config.num_patches), patches]
        )
    parameters = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=SMOOTHING),
    )
    for file in (ENCODER_FILE, DECODER_FILE) if config.has_decoder else (ENCODER_FILE,):
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF's progress bars
            quantised = nncf.quantize(
                core.read_model(str(source / file)),
                nncf.Dataset(inputs[file]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(inputs[file]),
                advanced_parameters=parameters,
            )
        openvino.save_model(quantised, str(folder / file), compress_to_fp16=False)


def _estimate_seconds(encode_one: Callable[[], object], photographs: int) -> int:
    """Estimates the seconds of a quantisation from those of one whole photograph in float32, rounded to ten."""
    encode_one()  # compiles
    start = time.monotonic()
    encode_one()
    seconds = BASE_SECONDS + RUNS_PER_PHOTOGRAPH * photographs * (time.monotonic() - start)
    return max(10, 10 * round(seconds / 10))


def _int8_info(reference: EngineInfo) -> EngineInfo:
    """The info of an int8 engine that is measured beside the reference engine."""
    changes = {"backend": "openvino", "precision": "int8", "computes": "int8", "lanes": available_cpus()}
    return reference.model_copy(update=changes)
