"""Evaluation of a model on images whose classes are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats
from model.checkpoints.heads import POOL_INDEX
from model.engines.base import Engine
from model.evaluation.config import EvalConfig
from model.evaluation.extract import Features, Progress, Reader, UnreadableImage, extract
from model.evaluation.neighbours import Labels, predict
from model.evaluation.probe import fit_probe
from model.evaluation.results import Classification, Counts, Evaluation, LinearProbe, Neighbours, Reconstruction
from model.evaluation.similarity import WINDOW
from model.evaluation.spec import SHEET_MASK, EvalSpec
from model.evaluation.whitening import fit_whitening
from model.images.folders import LabelledImages
from model.images.render import panel, sheet

Numbers = NDArray[np.int64]


class EvaluationError(ValueError):
    """The images allow no evaluation; the message is one sentence that says why."""


@dataclass(frozen=True)
class EvalSplit:
    """The images to fit on and the images to measure on.

    Where there are no classes, nothing is fitted: `train_numbers` are empty and `has_classes` is false.

    Attributes:
        train: images, of which some are fitted on.
        train_numbers: indices of those in `train`.
        data: images, of which some are measured on.
        numbers: indices of those in `data`.
        description: how the images were chosen, in words.
    """

    train: LabelledImages
    train_numbers: Numbers
    data: LabelledImages
    numbers: Numbers
    description: str

    @classmethod
    def choose(cls, data: LabelledImages, train: LabelledImages | None, config: EvalConfig) -> EvalSplit:
        """Draws images if `config` limits them, and splits each class where there is no `train`.

        Raises:
            EvaluationError: `train` has fewer than two classes.
        """
        numbers = choose_images(len(data.paths), config)
        if train is None and len(data.classes) < 2:
            return cls(data, numbers[:0], data, numbers, "there are no classes to tell apart")
        if train is not None:
            if len(train.classes) < 2:
                raise EvaluationError(f"there is one class alone, {train.classes[0]}: telling classes apart needs two")
            train_numbers = choose_images(len(train.paths), config)
            return cls(train, train_numbers, data, numbers, "classifiers are fitted on the folder of --train")
        measured = _stratify(np.array(data.labels)[numbers], config)
        share = f"{config.test_share:.0%} of each class, drawn with seed {config.seed}, are measured on"
        return cls(data, numbers[~measured], data, numbers[measured], share + ", the rest is fitted on")

    @property
    def has_classes(self) -> bool:
        """Whether there are classes to tell apart."""
        return len(self.train.classes) > 1

    @property
    def images(self) -> int:
        """The number of images, including the paths that cannot be tried."""
        return len(self.train_numbers) + len(self.numbers) + len(self.refused)

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Paths that cannot be tried, with the reason."""
        return self.data.refused if self.train is self.data else [*self.train.refused, *self.data.refused]


def evaluate(
    engine: Engine,
    read: Reader,
    split: EvalSplit,
    config: EvalConfig,
    progress: Progress,
    stage: Callable[[str], None],
) -> Evaluation:
    """Sends the images of a split through an engine, fits classifiers, and measures.

    Args:
        engine: computes vectors and reconstructions.
        read: reads an image's patches.
        split: the images.
        config: options that shape the figures.
        progress: is told of each image.
        stage: is told, in words, of each stage of the work.

    Raises:
        EvaluationError: too few images can be used, or the model's square is too small.
        EngineError: the engine cannot run a batch.
    """
    model = engine.info.config
    if model.has_decoder and model.image_size < WINDOW:
        raise EvaluationError(f"pictures of {model.image_size} pixels are too small: SSIM needs {WINDOW}")
    recorder = _SkipRecorder(progress)
    for path, reason in split.refused:
        recorder.skip(f"{path}: {reason}")
    if not (split.has_classes or model.has_decoder):
        raise EvaluationError(
            f"there are no classes, and {engine.info.model} has no decoder: there is nothing to measure"
        )
    spec = EvalSpec.for_model(model, config.seed, reconstruct=model.has_decoder)
    train: Features | None = None
    if split.has_classes:
        stage("embedding the images to fit on")
        fit_spec = EvalSpec.for_model(model, config.seed, reconstruct=False)
        train = extract(engine, read, split.train.paths, split.train_numbers.tolist(), fit_spec, recorder)
        if train is None:
            raise EvaluationError("none of the images to fit on can be used")
        stage("embedding and reconstructing")
    else:
        spec = replace(spec, keeps=())
        stage("reconstructing")
    data = extract(engine, read, split.data.paths, split.numbers.tolist(), spec, recorder)
    if data is None:
        raise EvaluationError("none of the images to measure on can be used")
    classification, largest_class = _classify(spec, split, train, data, config, stage) if train else ((), None)
    return Evaluation(
        model=engine.info.model_id,
        backend=engine.info.backend,
        precision=engine.info.precision,
        neighbours=config.neighbours,
        seed=config.seed,
        norm_pix_loss=model.norm_pix_loss,
        images=Counts(
            train=len(train.numbers) if train else 0,
            measured=len(data.numbers),
            classes=len(split.train.classes) if split.has_classes else 0,
            split=split.description,
            broken=tuple(recorder.reasons),
        ),
        largest_class=largest_class,
        classification=classification,
        reconstruction=tuple(
            Reconstruction(strategy=mask.strategy, mask_ratio=mask.ratio, loss=loss, psnr_db=psnr, ssim=ssim)
            for mask, (loss, psnr, ssim) in zip(spec.masks, data.reconstruction.mean(axis=0), strict=True)
        ),
    )


def _classify(
    spec: EvalSpec,
    split: EvalSplit,
    train: Features,
    data: Features,
    config: EvalConfig,
    stage: Callable[[str], None],
) -> tuple[tuple[Classification, ...], float]:
    """The accuracies by kind of vectors, and that of always naming the largest class.

    Raises:
        EvaluationError: the images to fit on are all of one class.
    """
    train_labels, labels = np.array(split.train.labels)[train.numbers], np.array(split.data.labels)[data.numbers]
    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) < 2:
        raise EvaluationError("the images to fit on that can be used are all of one class")
    scores = _Scorer(train_labels, labels, config, stage).score_all(spec, train, data)
    return scores, float(np.mean(labels == classes[counts.argmax()]))


def render_sheet(engine: Engine, read: Reader, split: EvalSplit, config: EvalConfig) -> Bytes:
    """A sheet of a few of the measured images: original, masked, reconstruction and composite at a mask ratio of 0.75.

    Raises:
        EvaluationError: none of them can be used, or the grid of patches is too small.
        EngineError: the engine cannot run a batch.
    """
    spec = EvalSpec.for_model(engine.info.config, config.seed, reconstruct=True)
    if SHEET_MASK not in spec.masks:
        raise EvaluationError(f"a grid of {spec.grid} x {spec.grid} patches is too small to be shown masked")
    count = min(config.sheet_images, len(split.numbers))
    panels = []
    for number in split.numbers[np.linspace(0, len(split.numbers) - 1, count).round().astype(int)].tolist():
        try:
            patches = read(split.data.paths[number])
        except UnreadableImage:  # `evaluate` has named it
            continue
        visible_indices = spec.visible_to_reconstruct(SHEET_MASK, number)
        pixels, _ = engine.reconstruct(0, patches[None], visible_indices[None])
        panels.append(panel(patches, pixels[0], visible_indices))
    if not panels:
        raise EvaluationError("none of the images for the sheet can be used")
    return sheet(panels)


def choose_images(count: int, config: EvalConfig) -> Numbers:
    """Chooses which of `count` images to use, ascending: all of them, or as many as the limit allows."""
    if config.limit is None or config.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).permutation(count)[: config.limit])


class _Scorer:
    """Fits classifiers on training vectors of each kind, and measures their accuracy."""

    def __init__(self, train_labels: Labels, labels: Labels, config: EvalConfig, stage: Callable[[str], None]) -> None:
        self._train_labels, self._labels, self._config, self._stage = train_labels, labels, config, stage

    def score_all(self, spec: EvalSpec, train: Features, data: Features) -> tuple[Classification, ...]:
        scores = [
            self._score(pool, keep, train.vectors[:, k, POOL_INDEX[pool]], data.vectors[:, k, POOL_INDEX[pool]])
            for pool in spec.pools
            for k, keep in enumerate(spec.keeps)
        ]
        return (*scores, self._score("thumbnail", 1.0, train.thumbnails, data.thumbnails))

    def _score(
        self, features: Literal["cls", "mean", "thumbnail"], keep: float, train: Floats, vectors: Floats
    ) -> Classification:
        self._stage(f"classifying by {features}, {keep:.0%} of the patches")
        whitening = fit_whitening(train)
        knn = Neighbours(
            raw=self._knn(train, vectors),
            centred=self._knn(train - whitening.centre, vectors - whitening.centre),
            whitened=self._knn(whitening.apply(train), whitening.apply(vectors)),
        )
        probe = fit_probe(train, self._train_labels, self._config.probe_iterations)
        linear = LinearProbe(
            accuracy=self._accuracy(probe.classify(vectors)), iterations=probe.iterations, converged=probe.converged
        )
        return Classification(features=features, keep=keep, dim=train.shape[1], knn=knn, linear=linear)

    def _knn(self, train: Floats, vectors: Floats) -> float:
        return self._accuracy(predict(train, self._train_labels, vectors, self._config.neighbours))

    def _accuracy(self, classes: Labels) -> float:
        return float(np.mean(classes == self._labels))


class _SkipRecorder:
    """Passes progress on, and records why images were skipped."""

    def __init__(self, progress: Progress) -> None:
        self.reasons: list[str] = []
        self._progress = progress

    def advance(self) -> None:
        self._progress.advance()

    def skip(self, reason: str) -> None:
        self.reasons.append(reason)
        self._progress.skip(reason)


def _stratify(labels: Labels, config: EvalConfig) -> NDArray[np.bool_]:
    """Chooses the images to measure on, [n]: a share of each class, at least one image, but never the whole class."""
    rng = np.random.default_rng((config.seed, 1))
    measured = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(len(members) - 1, max(1, round(config.test_share * len(members))))
        measured[members[:count]] = True
    return measured
