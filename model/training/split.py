"""Labelled images of a fine-tuning run, split into a part to learn from and a part to measure accuracy on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.images.errors import ImageError
from model.images.folders import ClassFolderError, LabelledImages, LeftOut, labelled_images
from model.images.packs import open_image_file
from model.training.run import RunError, record_images

MAX_NAMES = 20
"""Names of classes that are shown."""

log = logging.getLogger(__name__)


class LabelledSplit(NamedTuple):
    """Images and classes in two parts that share no image."""

    training: LabelledImages
    validation: LabelledImages | None
    images: dict[str, Any]
    """The record of both parts' images, for the run's recipe.json."""

    @property
    def description(self) -> str:
        """Numbers and names for the user."""
        classes, held_out = self.training.classes, self.validation
        names = ", ".join(classes[:MAX_NAMES]) + (", …" if len(classes) > MAX_NAMES else "")
        measured = f", {len(held_out.paths)} held out" if held_out else ""
        return f"{len(self.training.paths)} images to learn from{measured}, of {len(classes)} classes: {names}"

    def log_skipped(self) -> None:
        """Warns of the files in the folders that were not taken."""
        warn_of_skipped(self.training.refused, self.training.left_out)
        if self.validation is not None and self.images["validation"] is not None:  # of a folder of its own
            warn_of_skipped(self.validation.refused, self.validation.left_out)


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
    images: dict[str, Any] = record_images(labelled.paths, [folder])
    images |= {"validation": None, "classes": labelled.classes}
    if validation is not None:
        held_out = labelled_images(validation, labelled.classes)
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


def require_readable_classes(labelled: LabelledImages) -> None:
    """Checks that each class has an image that can be opened.

    Raises:
        ClassFolderError: one has none; the message names it.
    """
    images = zip(labelled.paths, labelled.labels, strict=True)
    for label, members in groupby(sorted(images, key=itemgetter(1)), key=itemgetter(1)):
        if not any(_can_be_opened(path) for path, _ in members):
            raise ClassFolderError(f"the class {labelled.classes[label]!r} has no image to learn from that can be read")


def warn_of_skipped(refused: Iterable[tuple[str, str]], left_out: LeftOut) -> None:
    """Logs the paths that cannot be tried, and in one line what else was left out."""
    for path, reason in refused:
        log.warning("skipped: %s: %s", path, reason)
    if left_out.sentence:
        log.warning("%s", left_out.sentence)


def _can_be_opened(path: str) -> bool:
    try:
        open_image_file(path)
    except ImageError:
        return False
    return True
