"""Post-training quantisation: OpenVINO's graphs in eight bits, by NNCF, calibrated on photographs.

On photographs and nothing less: ranges taken from drawn images cut off what only photographs reach, and the fixed
images of the gate, drawn like them, would not show it. So a third of the photographs plays no part in the calibration,
and the engine is measured on that third.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.arrays import Bytes
from model.config import MAEConfig
from model.engines.base import Engine, EngineBuildError, EngineInfo, Quantisation
from model.engines.job import Calibration
from model.engines.openvino.calibration import read_squares
from model.engines.openvino.engine import DECODER, ENCODER, OpenVINOEngine
from model.engines.openvino.runtime import import_openvino
from model.engines.parity import answers, measure, quarter_seen
from model.masking import all_indices, restore_indices_for

if TYPE_CHECKING:
    from model.engines.job import LoadedModel

QUANTISATION = "quantisation.json"
HELD_OUT = 3
"""Every third photograph is held out."""
FIRST_SEED = 1000
"""Of the masks that are calibrated with; those that are measured with begin at 0."""


def require_nncf() -> str:
    """NNCF's version.

    Raises:
        EngineBuildError: it is not installed.
    """
    if not find_spec("nncf"):
        raise EngineBuildError("making an int8 engine needs the package nncf: pip install 'mae-serve[int8]'")
    return version("nncf")


def quantise_on(
    calibration: Calibration,
    facts: LoadedModel,
    reference: Engine,
    source: Path,
    folder: Path,
    progress: Callable[[str], None],
) -> None:
    """Quantises the graphs in `source` into `folder`, and writes there what that has cost.

    Args:
        calibration: the photographs.
        facts: of the model.
        reference: eager float32.
        source: holds what `openvino.convert` wrote.
        folder: exists.
        progress: told in words what is being done.

    Raises:
        EngineBuildError: too few photographs can be read.
    """
    photographs = read_squares(calibration.paths, facts.config, facts.preprocessing)
    ours, others = calibrating(photographs), held_out(photographs)
    progress(f"quantising {facts.config.name} to eight bits on {len(ours)} photographs")
    quantise(source, folder, ours, facts.config)
    progress(f"measuring the quantised {facts.config.name} on {len(others)} other photographs")
    engine = OpenVINOEngine(folder, _info(reference.info))
    quantisation = Quantisation(
        photographs=len(ours),
        held_out=len(others),
        digest=calibration.digest,
        nncf=version("nncf"),
        parity=measure(answers(engine, images=others), answers(reference, images=others), facts.config),
    )
    (folder / QUANTISATION).write_text(quantisation.model_dump_json(indent=1))


def read_quantisation(folder: Path) -> Quantisation:
    """What `quantise_on` wrote."""
    return Quantisation(**json.loads((folder / QUANTISATION).read_text()))


def calibrating(photographs: Bytes) -> Bytes:
    """Those that are calibrated on."""
    kept: Bytes = photographs[np.arange(len(photographs)) % HELD_OUT != 0]
    return kept


def held_out(photographs: Bytes) -> Bytes:
    """Those that are measured on."""
    return photographs[::HELD_OUT]


def quantise(source: Path, folder: Path, photographs: Bytes, config: MAEConfig) -> None:
    """Reads float32 graphs from `source`, and writes them in eight bits into `folder`.

    Args:
        source: holds what `openvino.convert` wrote.
        folder: exists.
        photographs: to calibrate on, uint8 [R, N, P]; each is seen whole, and through a quarter of its patches.
        config: its sizes.
    """
    openvino = import_openvino()  # first: NNCF would import it with its telemetry
    import nncf

    nncf.set_log_level(logging.WARNING)
    core = openvino.Core()
    encode = core.compile_model(str(source / ENCODER), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = quarter_seen(config, len(photographs), FIRST_SEED)
    everywhere = all_indices(config.num_patches)[None]
    inputs: dict[str, list[list[Any]]] = {ENCODER: [], DECODER: []}
    for patches, visible_indices in zip(photographs[:, None], seen[:, None], strict=True):
        masked = [np.take_along_axis(patches, visible_indices[..., None], axis=1), visible_indices]
        inputs[ENCODER] += [[patches, everywhere], masked]
        inputs[DECODER].append(
            [encode(masked)[1].copy(), restore_indices_for(visible_indices, config.num_patches), patches]
        )
    for name in (ENCODER, DECODER) if config.has_decoder else (ENCODER,):
        with contextlib.redirect_stdout(io.StringIO()):  # its bars of progress
            quantised = nncf.quantize(
                core.read_model(str(source / name)),
                nncf.Dataset(inputs[name]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(inputs[name]),
            )
        openvino.save_model(quantised, str(folder / name), compress_to_fp16=False)


def _info(reference: EngineInfo) -> EngineInfo:
    """Of an engine in int8 that is measured here, in the place of `reference`."""
    return reference.model_copy(
        update={
            "backend": "openvino",
            "precision": "int8",
            "computes": "int8",
            "lanes": reference.threads_per_lane,
            "threads_per_lane": 1,
        }
    )
