"""`mae finetune`: a folder for each class -> weights with a classification head, for `mae serve` and POST /classify."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from model.training.config import FinetuningRecipe
from service.cli.errors import CommandError
from service.cli.training_runs import absolute_weights, ending_well, recipe_of, require_bound


def finetune(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Folder that holds a folder of images for each class.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="Folder of the run.")] = Path("run"),
    validation: Annotated[
        Path | None,
        typer.Option("--validation", metavar="<path>", help="Folder of the same classes to measure accuracy on."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    **given: Any,
) -> None:
    """Train a classifier on a pretrained encoder: all of it, or with --frozen the head alone.

    The run's folder holds model.safetensors (serve it with `mae serve --weights RUN` and ask POST /classify),
    metrics.csv, TensorBoard's events and what --resume needs. Loss and top-1 accuracy on the held-out images are
    measured now and then and at the end. Without --frozen the encoder changes, and a decoder is left out.

    SIGTERM and Ctrl-C save before they end it. --resume takes images and choices from the folder; what does not shape
    the weights may be given anew. Several processes share a step under torchrun:
    `torchrun --nproc-per-node 2 --no-python mae finetune …`.

    Exit code: 0 when the schedule is through; 2 if the command was wrong or could not go on; 128 + the signal's number
    if a signal ended it.
    """
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    folder, validation = (path and path.absolute() for path in (folder, validation))  # resumed from elsewhere, maybe
    chosen = {name: value for name, value in given.items() if value is not None}
    if "weights" in chosen:
        chosen["weights"] = absolute_weights(chosen["weights"])
    from model.training.distributed import join_processes
    from model.training.finetune import finetune as train
    from model.training.finetune import restore_finetuning
    from model.training.progress import TrainingProgress

    with ending_well():
        recipe = recipe_of(FinetuningRecipe, chosen)
        if resume:
            recipe, folder, validation = restore_finetuning(output, recipe, set(chosen), folder, validation)
        else:
            require_bound(recipe)
        if folder is None:
            raise CommandError("no images are given: name a folder of classes")
        if validation is not None and "validation_share" in chosen:
            raise CommandError("--validation and --validation-share exclude each other")
        with join_processes() as place, TrainingProgress(quiet=not place.is_main) as progress:
            weights = train(folder, validation, output, recipe, place, progress, resume)
            progress.say(f"done: {weights}")
