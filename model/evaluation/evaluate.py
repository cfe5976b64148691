"""Evaluation of a model on images whose classes are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats
from model.checkpoints.heads import ROWS
from model.engines.base import Engine
from model.evaluation.config import EvalConfig
from model.evaluation.extract import Features, Progress, Read, Unreadable, ask
from model.evaluation.neighbours import Labels, predict
from model.evaluation.probe import probe
from model.evaluation.results import Classification, Counts, Evaluation, LinearProbe, Neighbours, Reconstructed
from model.evaluation.similarity import WINDOW
from model.evaluation.spec import SHOWN, EvalSpec
from model.evaluation.whitening import fit_whitening
from model.images.folders import Labelled
from model.images.render import panel, sheet

Numbers = NDArray[np.int64]


class EvaluationError(ValueError):
    """Images on which nothing can be evaluated; one sentence says why."""


@dataclass(frozen=True)
class Task:
    """What is fitted on and what is measured on."""

    train: Labelled
    train_numbers: Numbers
    """Places of the images in `train`."""
    data: Labelled
    numbers: Numbers
    """Places of the images in `data`."""
    split: str
    """In words."""

    @classmethod
    def of(cls, data: Labelled, train: Labelled | None, choices: EvalConfig) -> Task:
        """Draws images if `choices` limit them, and splits each class where there is nothing else to train on.

        Raises:
            EvaluationError: there are fewer than two classes.
        """
        if len((train or data).classes) < 2:
            raise EvaluationError(f"there is one class alone, {data.classes[0]}: telling classes needs two")
        numbers = drawn(len(data.paths), choices)
        if train is not None:
            fitted = drawn(len(train.paths), choices)
            return cls(train, fitted, data, numbers, "classifiers are fitted on the folder of --train")
        measured = _stratified(np.array(data.labels)[numbers], choices)
        said = f"{choices.test_share:.0%} of each class, drawn with seed {choices.seed}, are measured on"
        return cls(data, numbers[~measured], data, numbers[measured], said + ", the rest is fitted on")

    @property
    def images(self) -> int:
        """How many there are to try, those included that cannot be."""
        return len(self.train_numbers) + len(self.numbers) + len(self.refused)

    @property
    def refused(self) -> list[tuple[str, str]]:
        """What cannot be tried, with the reason."""
        return self.data.refused if self.train is self.data else [*self.train.refused, *self.data.refused]


def evaluate(
    engine: Engine, read: Read, task: Task, choices: EvalConfig, progress: Progress, stage: Callable[[str], None]
) -> Evaluation:
    """Sends the images of a task through an engine, and fits and measures.

    Args:
        engine: what computes.
        read: gives an image's patches.
        task: which images.
        choices: what shapes the figures.
        progress: told of each image.
        stage: told in words what is being done.

    Raises:
        EvaluationError: too few images can be used, or the model's square is too small.
        EngineError: the engine cannot run a batch.
    """
    config = engine.info.config
    if config.has_decoder and config.image_size < WINDOW:
        raise EvaluationError(f"pictures of {config.image_size} pixels are too small: SSIM needs {WINDOW}")
    broken = _Broken(progress)
    for path, reason in task.refused:
        broken.skip(f"{path}: {reason}")
    stage("embedding the images to fit on")
    questions = EvalSpec.of(config, choices.seed, reconstructs=False)
    train = ask(engine, read, task.train.paths, task.train_numbers.tolist(), questions, broken)
    stage("embedding and reconstructing")
    questions = EvalSpec.of(config, choices.seed, reconstructs=config.has_decoder)
    found = ask(engine, read, task.data.paths, task.numbers.tolist(), questions, broken)
    if train is None or found is None:
        raise EvaluationError(f"none of the images to {'fit' if train is None else 'measure'} on can be used")
    labels, truth = np.array(task.train.labels)[train.numbers], np.array(task.data.labels)[found.numbers]
    if len(np.unique(labels)) < 2:
        raise EvaluationError("the images to fit on that can be used are all of one class")
    classes, votes = np.unique(labels, return_counts=True)
    judge = _Judge(labels, truth, choices, stage)
    return Evaluation(
        model=engine.info.model_id,
        backend=engine.info.backend,
        precision=engine.info.precision,
        neighbours=choices.neighbours,
        seed=choices.seed,
        norm_pix_loss=config.norm_pix_loss,
        images=Counts(
            train=len(labels),
            measured=len(truth),
            classes=len(task.train.classes),
            split=task.split,
            broken=tuple(broken.reasons),
        ),
        largest_class=float(np.mean(truth == classes[votes.argmax()])),
        classification=judge.all(questions, train, found),
        reconstruction=tuple(
            Reconstructed(strategy=mask.strategy, mask_ratio=mask.ratio, loss=loss, psnr_db=decibel, ssim=likeness)
            for mask, (loss, decibel, likeness) in zip(questions.masks, found.painted.mean(axis=0), strict=True)
        ),
    )


def panels(engine: Engine, read: Read, task: Task, choices: EvalConfig) -> NDArray[np.uint8]:
    """A sheet of a few of the measured images: original, masked, reconstruction, composite, at a mask ratio of 0.75.

    Raises:
        EvaluationError: none of them can be used, or the grid of patches is too small.
        EngineError: the engine cannot run a batch.
    """
    questions = EvalSpec.of(engine.info.config, choices.seed, reconstructs=True)
    if SHOWN not in questions.masks:
        raise EvaluationError(f"a grid of {questions.grid} x {questions.grid} patches is too small to be shown masked")
    count = min(choices.sheet_images, len(task.numbers))
    rows = []
    for number in task.numbers[np.linspace(0, len(task.numbers) - 1, count).round().astype(int)].tolist():
        try:
            patches, visible = read(task.data.paths[number]), questions.visible(SHOWN, number)
        except Unreadable:  # named already
            continue
        pixels, _ = engine.reconstruct(0, patches[None], visible[None])
        rows.append(panel(patches, pixels[0], visible))
    if not rows:
        raise EvaluationError("none of the images for the sheet can be used")
    return sheet(rows)


class _Judge:
    """Fits on the training vectors of one kind after the other, and measures."""

    def __init__(self, labels: Labels, truth: Labels, choices: EvalConfig, stage: Callable[[str], None]) -> None:
        self._labels, self._truth, self._choices, self._stage = labels, truth, choices, stage

    def all(self, questions: EvalSpec, train: Features, found: Features) -> tuple[Classification, ...]:
        rows = [
            self._row(pool, keep, train.vectors[:, place, ROWS[pool]], found.vectors[:, place, ROWS[pool]])
            for pool in questions.pools
            for place, keep in enumerate(questions.keeps)
        ]
        return (*rows, self._row("thumbnail", 1.0, train.thumbnails, found.thumbnails))

    def _row(
        self, features: Literal["cls", "mean", "thumbnail"], keep: float, train: Floats, vectors: Floats
    ) -> Classification:
        self._stage(f"classifying by {features}, {keep:.0%} of the patches")
        whitening = fit_whitening(train)
        knn = Neighbours(
            raw=self._knn(train, vectors),
            centred=self._knn(train - whitening.centre, vectors - whitening.centre),
            whitened=self._knn(whitening.apply(train), whitening.apply(vectors)),
        )
        probed = probe(train, self._labels, vectors, self._choices.probe_iterations)
        linear = LinearProbe(
            accuracy=self._right(probed.classes), iterations=probed.iterations, converged=probed.converged
        )
        return Classification(features=features, keep=keep, dim=train.shape[1], knn=knn, linear=linear)

    def _knn(self, train: Floats, vectors: Floats) -> float:
        return self._right(predict(train, self._labels, vectors, self._choices.neighbours))

    def _right(self, classes: Labels) -> float:
        return float(np.mean(classes == self._truth))


class _Broken:
    """Passes progress on, and keeps the reasons."""

    def __init__(self, progress: Progress) -> None:
        self.reasons: list[str] = []
        self._progress = progress

    def advance(self) -> None:
        self._progress.advance()

    def skip(self, reason: str) -> None:
        self.reasons.append(reason)
        self._progress.skip(reason)


def drawn(count: int, choices: EvalConfig) -> Numbers:
    """Numbers of the images to look at: all of 0..count-1 or as many as the limit says, ascending."""
    if choices.limit is None or choices.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(choices.seed).permutation(count)[: choices.limit])


def _stratified(labels: Labels, choices: EvalConfig) -> NDArray[np.bool_]:
    """Which images are measured on, [n]: the share of each class, one at least, but never all of a class."""
    draw = np.random.default_rng((choices.seed, 1))
    measured = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == label))
        count = min(len(members) - 1, max(1, round(choices.test_share * len(members))))
        measured[members[:count]] = True
    return measured
