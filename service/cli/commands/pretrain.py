"""`mae pretrain`: folders of images -> weights that `mae serve` takes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from model.training.config import Recipe
from service.cli.errors import CommandError
from service.cli.training_runs import absolute_weights, ending_well, recipe_of, require_bound


def pretrain(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER", help="Images, and folders of images at any depth.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="Folder of the run.")] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    **given: Any,
) -> None:
    """Pretrain a masked autoencoder on images.

    The run's folder holds model.safetensors (serve it with `mae serve --weights RUN`), metrics.csv, TensorBoard's
    events, sheets of reconstructions under previews, and what --resume needs. SIGTERM and Ctrl-C save before they end
    it. --resume takes images and choices from the folder; what does not shape the weights may be given anew.

    Several processes share a step under torchrun: `torchrun --nproc-per-node 2 --no-python mae pretrain …`.

    Exit code: 0 when the schedule is through; 2 if the command was wrong or could not go on; 128 + the signal's number
    if a signal ended it.
    """
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    folders = [folder.absolute() for folder in folders or ()]  # a run may be resumed from elsewhere
    chosen = {name: value for name, value in given.items() if value is not None}
    if "init" in chosen:
        chosen["init"] = absolute_weights(chosen["init"])
    from model.training.distributed import join_processes
    from model.training.pretrain import pretrain as train
    from model.training.pretrain import restore_pretraining
    from model.training.progress import TrainingProgress

    with ending_well():
        recipe = recipe_of(Recipe, chosen)
        if resume:
            recipe, folders = restore_pretraining(output, recipe, set(chosen), folders)
        else:
            require_bound(recipe)
        if not folders:
            raise CommandError("no images are given: name a folder")
        with join_processes() as place, TrainingProgress(quiet=not place.is_main) as progress:
            weights = train(folders, output, recipe, place, progress, resume)
            progress.say(f"done: {weights}")
