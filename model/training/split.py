"""Labelled images of a fine-tuning run: what it learns from, and what its accuracy is measured on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.images.folders import Labelled, labelled_images
from model.training.resume import facts_of
from model.training.run import RunError

log = logging.getLogger(__name__)


class LabelledSplit(NamedTuple):
    """Images and classes, in two parts that share none."""

    training: Labelled
    validation: Labelled | None
    facts: dict[str, Any]
    """What a resumed run must meet again."""


def find_examples(folder: Path, validation: Path | None, share: float, seed: int) -> LabelledSplit:
    """Images of the classes in `folder`, and those of `validation`, or a share of each class held out for it.

    Args:
        folder: a folder for each class.
        validation: another one with the same classes, or with some of them.
        share: of each class that is held out if there is no `validation`; 0 for none.
        seed: which are held out.

    Raises:
        RunError: there is one class alone, or nothing that could be held out.
        ClassFolderError, FileNotFoundError, NotADirectoryError: as `labelled_images`.
    """
    found = labelled_images(folder)
    if len(found.classes) < 2:
        raise RunError(f"{folder} holds one class, {found.classes[0]!r}: there is nothing to tell apart")
    facts: dict[str, Any] = facts_of(found.paths, [folder]) | {"validation": None}
    _warn(found)
    if validation is not None:
        measured = labelled_images(validation, found.classes)
        _warn(measured)
        return LabelledSplit(found, measured, facts | {"validation": facts_of(measured.paths, [validation])})
    if share == 0:
        return LabelledSplit(found, None, facts)
    chosen = held_out(found.labels, share, seed)
    if not chosen:
        raise RunError("no class has two images, so none can be held out: give --validation or --validation-share 0")
    return LabelledSplit(part(found, set(range(len(found.paths))) - chosen), part(found, chosen), facts)


def held_out(labels: list[int], share: float, seed: int) -> set[int]:
    """Places of a share of each class: at least one image, unless the class has no other."""
    chosen: set[int] = set()
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.array(labels) == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        shuffle = np.random.default_rng((seed, 3, label))
        chosen.update(shuffle.permutation(members)[:count].tolist())
    return chosen


def part(of: Labelled, places: Iterable[int]) -> Labelled:
    """Those images that stand in `places`, in the same order."""
    ordered = sorted(places)
    return of._replace(paths=[of.paths[i] for i in ordered], labels=[of.labels[i] for i in ordered])


def _warn(found: Labelled) -> None:
    for path, reason in found.refused:
        log.warning("skipped: %s: %s", path, reason)
