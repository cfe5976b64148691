"""Linear probing: a classification head on the vectors of a frozen encoder (He et al. 2021, A.1).

Each image is encoded once, and the evaluation's linear probe is fitted on the vectors. So the head is as good as
`mae evaluate` says, for the same images.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.heads import Head
from model.checkpoints.locate import locate_named
from model.checkpoints.native import HeadConfig
from model.evaluation.probe import fit_probe
from model.images.folders import LabelledImages
from model.training.config import FinetuningRecipe
from model.training.dataset import ImageDataset
from model.training.distributed import DistributedContext
from model.training.finetune import require_pool, starting_point
from model.training.progress import TrainingProgress, format_duration
from model.training.run import WEIGHTS, Run, RunError
from model.training.signals import Interrupted, catch_signals
from model.training.split import require_readable_classes, split_images
from model.training.validation import MEASURES, measure_head
from model.training.vectors import LabelledVectors, VectorEncoder

COLUMNS = ("step", "images", "loss", "seconds")
"""Of metrics.csv, which has one line: the steps are the solver's iterations."""
CHUNK = 256
"""Images from one look at signals and clock to the next."""


def fit_linear_probe(
    folder: Path,
    validation: Path | None,
    output: Path,
    recipe: FinetuningRecipe,
    context: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Fits a classification head on a frozen encoder, or goes on with it, and leaves the weights in `output`.

    Arguments, result and errors are those of `model.training.finetune.finetune`.
    """
    torch.set_num_threads(recipe.threads or context.cpus)
    split = split_images(folder, validation, recipe.validation_share, recipe.seed)
    split.log_skipped()
    require_readable_classes(split.training)
    source = locate_named(recipe.weights)
    weights = load(source.path, heads=recipe.heads)
    weights.log_notes(source.name)
    start = starting_point(weights, recipe, recipe.name or output.absolute().name)
    require_pool(start.config, recipe.pool)
    run = Run(output, MEASURES if split.validation else ())
    if context.is_main and not resume:
        run.begin(recipe, split.images | {"weights": source.digest})
    parts = [split.training, *([split.validation] if split.validation else ())]
    cache = _VectorCache(parts, run, recipe, context, progress)
    with run.discard_if_never_saved():
        progress.say(
            f"{split.description}; each image is encoded once, on {context.device.type}, and the head is fitted on the "
            f"vectors; the run is in {output}"
        )
        if not (resume and cache.restore()):
            cache.encode(start)
            if context.is_main:
                _fit_head(cache, split.training.classes, start, run, recipe, progress)
    return run.folder / WEIGHTS


def _fit_head(
    cache: _VectorCache,
    classes: tuple[str, ...],
    start: Checkpoint,
    run: Run,
    recipe: FinetuningRecipe,
    progress: TrainingProgress,
) -> None:
    """Fits the head on the first part of the images, measures it on the second if there is one, and saves it.

    Raises:
        RunError: the encoder gives no finite numbers, or a class has no image that can be read.
    """
    training, *held_out = cache.parts()
    missing = sorted(set(range(len(classes))) - set(training.labels.tolist()))
    if missing:
        raise RunError(f"the class {classes[missing[0]]!r} has no image to learn from that can be read")
    progress.show(1.0, f"fitting the head on {len(training.labels)} vectors")
    probe = fit_probe(training.vectors, training.labels, recipe.probe_iterations)
    head = Head(HeadConfig(pool=recipe.pool, classes=classes), probe.weight, probe.bias)
    fitted = measure_head(head, [training])
    metrics = {"step": probe.iterations, "images": fitted.images, "loss": fitted.loss, "seconds": cache.seconds}
    progress.say(f"{fitted.accuracy:.2%} of the {fitted.images} images that the head was fitted on right")
    for part in held_out:
        if not len(part.labels):
            raise RunError("none of the held-out images can be read")
        result = measure_head(head, [part])
        metrics |= dict(zip(MEASURES, (result.loss, result.accuracy), strict=True))
        progress.say(result.sentence)
    if not probe.converged:
        progress.say(f"the solver was stopped after {probe.iterations} iterations; --probe-iterations allows it more")
    run.open_metrics(COLUMNS, 0)
    run.log(metrics)
    run.close()
    cache.save(replace(start, heads=replace(start.heads, head=head)))


class _VectorCache:
    """The vectors of a run's images, which are saved now and then: a resumed run need not encode them again.

    Attributes:
        seconds: time that encoding has taken.
    """

    def __init__(
        self,
        parts: Sequence[LabelledImages],
        run: Run,
        recipe: FinetuningRecipe,
        context: DistributedContext,
        progress: TrainingProgress,
    ) -> None:
        paths = [path for part in parts for path in part.paths]
        labels = [label for part in parts for label in part.labels]
        self._dataset = ImageDataset(paths, labels, recipe.max_pixels)
        self._bounds = np.cumsum([0, *(len(part.paths) for part in parts)])
        self._run, self._recipe, self._context, self._progress = run, recipe, context, progress
        self.seconds = 0.0
        self._done = 0
        self._encoded: list[LabelledVectors] = []

    def restore(self) -> bool:
        """Takes the vectors that the run has saved; tells whether the run is complete."""
        state = self._run.load_state()
        if state is None:
            return False
        self.seconds, self._done = state["seconds"], state["done"]
        self._encoded = [LabelledVectors(*(tensor.numpy() for tensor in state["vectors"]))]
        return bool(state["complete"]) and (self._run.folder / WEIGHTS).is_file()

    def encode(self, start: Checkpoint) -> None:
        """Encodes the images that are left; each process takes its share of them.

        Raises:
            Interrupted: a signal came; the vectors were saved.
            NoImages: none can be read.
        """
        context, recipe, total = self._context, self._recipe, len(self._dataset.paths)
        encoder = VectorEncoder(start, recipe.pool, context.device, recipe.workers or context.decode_threads)
        before, first = self.seconds, self._done
        began = saved = time.monotonic()
        with catch_signals() as signal:
            while self._done < total:
                chunk = range(self._done, min(self._done + CHUNK, total))
                own = []
                for batch in encoder.batches(self._dataset, chunk[context.rank :: context.world_size]):
                    own.append(batch)
                    self._show(int(batch.numbers[-1]) + 1, first, began)
                self._encoded += [batch for batches in context.gather(own) for batch in batches]
                self._done, self.seconds = chunk.stop, before + time.monotonic() - began
                [stop] = context.all_max(signal.number)
                if context.is_main and self._encoded and (stop or time.monotonic() - saved >= 60 * recipe.save_minutes):
                    self._run.save_state(self._state(complete=False))
                    saved = time.monotonic()
                if stop:
                    raise Interrupted(int(stop), f"{self._done} images")
        if broken := self._dataset.broken:
            self._progress.say(f"{len(broken)} of {total} images could not be read and were skipped")

    def parts(self) -> list[LabelledVectors]:
        """The vectors of each part, in the order of its images.

        Raises:
            RunError: the encoder gives no finite numbers.
        """
        encoded = self._joined()
        if not np.isfinite(encoded.vectors).all():
            raise RunError("the encoder gives vectors that are not finite")
        starts = np.searchsorted(encoded.numbers, self._bounds)
        return [encoded.select(np.arange(start, end)) for start, end in pairwise(starts.tolist())]

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves the complete run."""
        self._run.save(self._state(complete=True), checkpoint)

    def _joined(self) -> LabelledVectors:
        """All vectors in the order of the images, from whichever process they came."""
        joined = LabelledVectors.concatenate(self._encoded)
        return joined.select(np.argsort(joined.numbers))

    def _state(self, complete: bool) -> dict[str, Any]:
        vectors = [torch.from_numpy(array) for array in self._joined()]
        return {"done": self._done, "seconds": self.seconds, "vectors": vectors, "complete": complete}

    def _show(self, done: int, first: int, began: float) -> None:
        total, rate = len(self._dataset.paths), (done - first) / (time.monotonic() - began)
        left = format_duration((total - done) / rate)
        self._progress.show(done / total, f"{done} of {total} images encoded  {rate:.1f} images/s  {left} left")
