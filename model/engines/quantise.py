"""Post-training quantisation: OpenVINO's graphs in eight bits, by NNCF, calibrated on photographs.

On photographs and nothing less: ranges taken from drawn images cut off what only photographs reach, and the fixed images
of the gate, drawn like them, would not show it. So a third of the photographs plays no part in the calibration, and the
engine is measured on that third.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.config import MAEConfig, Preprocessing
from model.engines.base import Bytes, Engine, EngineBuildError, Quantisation
from model.engines.parity import answers, measure, quarter_seen
from model.folders import find_images
from model.masking import decoder_rows, every_position
from model.pictures import FORMATS, cut, loaded, square

log = logging.getLogger(__name__)
QUANTISATION = "quantisation.json"
LEAST, MOST = 24, 192
HELD_OUT = 3
"""Every third photograph is held out."""
FIRST_SEED = 1000
"""Of the masks that are calibrated with; those that are measured with begin at 0."""


@dataclass(frozen=True)
class Calibration:
    """Photographs to quantise by."""

    paths: tuple[str, ...]
    digest: str
    """SHA-256 over their bytes, hexadecimal."""


def calibration_in(folder: Path) -> Calibration:
    """At most MOST of the images in `folder`, at any depth, always the same ones.

    Raises:
        EngineBuildError: there is no such folder, or there are too few images in it.
    """
    try:
        paths, _ = find_images([folder])
        random.Random(0).shuffle(paths)
        chosen = paths[:MOST]
        digest = hashlib.sha256()
        for path in chosen:
            digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    except OSError as error:
        raise EngineBuildError(f"photographs to calibrate on: {error.filename}: {error.strerror}") from error
    _enough(len(chosen))
    return Calibration(tuple(chosen), digest.hexdigest())


def require_nncf() -> str:
    """NNCF's version.

    Raises:
        EngineBuildError: it is not installed.
    """
    if not find_spec("nncf"):
        raise EngineBuildError("making an int8 engine needs the package nncf: pip install 'mae-serve[int8]'")
    return version("nncf")


def read_squares(paths: Sequence[str], config: MAEConfig, preprocessing: Preprocessing) -> Bytes:
    """Photographs as patches uint8 [R, N, P]; those that cannot be read are named in the log and left out.

    Raises:
        EngineBuildError: too few can be read.
    """
    patches = []
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                upright = loaded(image, preprocessing.resized_short_side(config.image_size))
            patches.append(cut(np.asarray(square(upright, config, preprocessing)), config.patch_size))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
            log.warning("not calibrated on: %s: %s", path, error)
    _enough(len(patches))
    return np.stack(patches)


def calibrating(photographs: Bytes) -> Bytes:
    """Those that are calibrated on."""
    return photographs[np.arange(len(photographs)) % HELD_OUT != 0]


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
    from model.engines.openvino import DECODER, ENCODER, import_openvino

    openvino = import_openvino()  # first: NNCF would import it with its telemetry
    import nncf

    nncf.set_log_level(logging.WARNING)
    core = openvino.Core()
    encode = core.compile_model(str(source / ENCODER), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    seen = quarter_seen(config, len(photographs), FIRST_SEED)
    everywhere = every_position(config.num_patches)[None]
    inputs: dict[str, list[list[Any]]] = {ENCODER: [], DECODER: []}
    for patches, positions in zip(photographs[:, None], seen[:, None], strict=True):
        masked = [np.take_along_axis(patches, positions[..., None], axis=1), positions]
        inputs[ENCODER] += [[patches, everywhere], masked]
        inputs[DECODER].append([encode(masked)[1].copy(), decoder_rows(positions, config.num_patches), patches])
    for name in (ENCODER, DECODER) if config.has_decoder else (ENCODER,):
        with contextlib.redirect_stdout(io.StringIO()):  # its bars of progress
            quantised = nncf.quantize(
                core.read_model(str(source / name)),
                nncf.Dataset(inputs[name]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(inputs[name]),
            )
        openvino.save_model(quantised, str(folder / name), compress_to_fp16=False)


def describe(engine: Engine, reference: Engine, photographs: Bytes, calibration_digest: str) -> Quantisation:
    """What the quantised `engine` costs on the photographs held out, beside `reference`, which is eager float32."""
    others = held_out(photographs)
    expected = answers(reference, images=others)
    return Quantisation(
        photographs=len(photographs) - len(others),
        held_out=len(others),
        digest=calibration_digest,
        nncf=version("nncf"),
        parity=measure(answers(engine, images=others), expected, engine.info.config),
    )


def write_quantisation(folder: Path, quantisation: Quantisation) -> None:
    """Beside the graphs."""
    (folder / QUANTISATION).write_text(quantisation.model_dump_json(indent=1))


def read_quantisation(folder: Path) -> Quantisation:
    """What `write_quantisation` wrote."""
    return Quantisation(**json.loads((folder / QUANTISATION).read_text()))


def _enough(count: int) -> None:
    if count < LEAST:
        raise EngineBuildError(f"int8 is calibrated on {LEAST} photographs at least, better {MOST}; there are {count}")
