"""A training session, the same for pretraining and fine-tuning: from the seeds to the last checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from model.training.config import TrainingConfig
from model.training.dataset import DataLoader
from model.training.distributed import DistributedContext, require_divisible
from model.training.memory_images import MemoryPlan
from model.training.memory_loader import MemoryLoader
from model.training.progress import TrainingProgress
from model.training.run import WEIGHTS, Run
from model.training.trainer import Task, Trainer


def run_session(
    make_task: Callable[[], Task],
    output: Path,
    recipe: TrainingConfig,
    context: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Trains to the end of the recipe's schedule, and leaves the weights in `output`.

    Args:
        make_task: makes the model, its objective and its data; it is called once the random numbers are seeded.
        output: the run's folder; it is made if it does not exist.
        recipe: the options.
        context: this process among the others.
        progress: shows how far the run is.
        resume: go on with the run in `output`.

    Returns:
        The file of weights, which can be served.

    Raises:
        RunError: the run cannot be begun or resumed.
        NoImages: no image can be read.
        Interrupted, DivergedError, OSError: as `Trainer.fit`.
    """
    require_divisible(recipe.batch_size, context)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads or context.cpus)
    task = make_task()
    run = Run(output, task.measures)
    memory = MemoryPlan.of(task.dataset, task.augmentation, recipe, context) if recipe.in_memory else None
    if context.is_main and not resume:  # after everything that may be refused, so that a refusal leaves no run behind
        run.begin(recipe, task.images)
    with run.discard_if_never_saved():
        trainer = Trainer(task, recipe, context, run, progress)
        if resume:
            trainer.resume()
        progress.say(trainer.describe())
        loader = make_loader(task, memory, recipe, context, progress)
        try:
            trainer.fit(loader)
        finally:
            loader.close()
            if broken := task.dataset.broken:
                progress.say(f"{len(broken)} of {len(task.dataset.paths)} images could not be read and were skipped")
    return run.folder / WEIGHTS


def make_loader(
    task: Task,
    memory: MemoryPlan | None,
    recipe: TrainingConfig,
    context: DistributedContext,
    progress: TrainingProgress,
) -> DataLoader | MemoryLoader:
    """Makes the loader of this process's batches; with a plan, it decodes all images into memory first.

    Raises:
        NoImages: no image can be read.
    """
    share = {"rank": context.rank, "world_size": context.world_size}
    if memory is None:
        threads = recipe.workers or context.decode_threads
        return DataLoader(task.dataset, task.augmentation, recipe.seed, recipe.batch_size, **share, threads=threads)
    start = time.monotonic()
    images = memory.load(task.dataset)
    progress.say(
        f"{len(images.labels)} images are in memory: {images.pixels.numel() / 1e6:.0f} MB on {context.device}, "
        f"decoded in {time.monotonic() - start:.1f} s"
    )
    return MemoryLoader(images, task.augmentation, recipe.seed, recipe.batch_size, **share)
