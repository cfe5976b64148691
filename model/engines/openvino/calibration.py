"""Which photographs int8 is calibrated on, and how they are read."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError
from model.engines.job import Calibration
from model.images.folders import find_images
from model.images.preprocess import ImageError, open_image, patches_of

log = logging.getLogger(__name__)
LEAST, MOST = 24, 192


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


def read_squares(paths: Sequence[str], config: MAEConfig, preprocessing: Preprocessing) -> Bytes:
    """Photographs as patches uint8 [R, N, P]; those that cannot be read are named in the log and left out.

    Raises:
        EngineBuildError: too few can be read.
    """
    patches = []
    for path in paths:
        try:
            with open_image(path) as image:
                patches.append(patches_of(image, config, preprocessing))
        except ImageError as error:
            log.warning("not calibrated on: %s: %s", path, error)
    _enough(len(patches))
    return np.stack(patches)


def _enough(count: int) -> None:
    if count < LEAST:
        raise EngineBuildError(f"int8 is calibrated on {LEAST} photographs at least, better {MOST}; there are {count}")
