"""Labelled images of a fine-tuning run, split into a part to learn from and a part to measure accuracy on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.images.folders import LabelledImages, labelled_images
from model.training.run import RunError, record_images

log = logging.getLogger(__name__)


class LabelledSplit(NamedTuple):
    """Images and classes in two parts that share no image."""

    training: LabelledImages
    validation: LabelledImages | None
    images: dict[str, Any]
    """The record of both parts' images, for the run's recipe.json."""


def split_images(folder: Path, validation: Path | None, share: float, seed: int) -> LabelledSplit:
    """Finds the images of the classes in `folder`, and those of `validation` or a share of each class held out for it.

    Args:
        folder: a folder of classes.
        validation: another folder with the same classes or some of them.
        share: share of each class that is held out if there is no `validation`; 0 for none.
        seed: decides which images are held out.

    Raises:
        RunError: there is only one class, or no image can be held out.
        ClassFolderError, FileNotFoundError, NotADirectoryError: as `labelled_images`.
    """
    labelled = labelled_images(folder)
    if len(labelled.classes) < 2:
        raise RunError(f"{folder} holds one class, {labelled.classes[0]!r}: there is nothing to tell apart")
    images: dict[str, Any] = record_images(labelled.paths, [folder]) | {"validation": None}
    _warn(labelled)
    if validation is not None:
        held_out = labelled_images(validation, labelled.classes)
        _warn(held_out)
        return LabelledSplit(labelled, held_out, images | {"validation": record_images(held_out.paths, [validation])})
    if share == 0:
        return LabelledSplit(labelled, None, images)
    chosen = choose_held_out(labelled.labels, share, seed)
    if not chosen:
        raise RunError("no class has two images, so none can be held out: give --validation or --validation-share 0")
    rest = set(range(len(labelled.paths))) - chosen
    return LabelledSplit(select(labelled, rest), select(labelled, chosen), images)


def choose_held_out(labels: list[int], share: float, seed: int) -> set[int]:
    """Chooses indices of a share of each class: at least one image, unless the class has no other."""
    chosen: set[int] = set()
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        rng = np.random.default_rng((seed, 3, label))
        chosen.update(rng.permutation(members)[:count].tolist())
    return chosen


def select(labelled: LabelledImages, indices: Iterable[int]) -> LabelledImages:
    """The images with these indices, in the same order."""
    ordered = sorted(indices)
    return labelled._replace(paths=[labelled.paths[i] for i in ordered], labels=[labelled.labels[i] for i in ordered])


def _warn(labelled: LabelledImages) -> None:
    for path, reason in labelled.refused:
        log.warning("skipped: %s: %s", path, reason)
