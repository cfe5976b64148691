"""The choice of the photographs that int8 is calibrated on."""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path

from model.checkpoints.locate import PACKAGED
from model.engines.base import EngineBuildError
from model.engines.job import MIN_PHOTOGRAPHS, Calibration
from model.images.folders import find_images
from model.images.packs import is_pack
from model.images.regular_file import read_regular_file

MAX_PHOTOGRAPHS = 192
PACKAGED_PHOTOGRAPHS = PACKAGED / "calibration" / "photographs"
"""The photographs that int8 is calibrated on where the operator gives none."""

log = logging.getLogger(__name__)


def choose_photographs(folder: Path) -> Calibration:
    """Chooses at most MAX_PHOTOGRAPHS of the images in `folder`, at any depth, always the same ones.

    Raises:
        EngineBuildError: there is no such folder, it is a pack, or there are too few images in it.
    """
    if is_pack(folder):
        raise EngineBuildError(f"--calibrate: {folder} is a pack, and a folder is needed")
    try:
        paths, _, left_out = find_images([folder])
        if left_out.sentence:
            log.warning("%s", left_out.sentence)
        random.Random(0).shuffle(paths)
        chosen = paths[:MAX_PHOTOGRAPHS]
        digest = hashlib.sha256()
        for path in chosen:
            digest.update(hashlib.sha256(read_regular_file(path)).digest())
    except OSError as error:
        raise EngineBuildError(f"photographs to calibrate on: {error.filename}: {error.strerror}") from error
    if len(chosen) < MIN_PHOTOGRAPHS:
        raise EngineBuildError(
            f"int8 is calibrated on at least {MIN_PHOTOGRAPHS} photographs, better {MAX_PHOTOGRAPHS}; "
            f"there are {len(chosen)} in {folder}"
        )
    return Calibration(tuple(chosen), digest.hexdigest())
