"""`mae pretrain`: folders of images -> weights that `mae serve` takes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from model.training.config import Recipe
from service.cli.errors import CommandError
from service.cli.training_runs import absolute_weights, recipe_of, require_bound, translate_errors


def pretrain(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Images, folders that are searched for images at any depth, and packs."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="Folder that the run writes to.")
    ] = Path("run"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    **options: Any,
) -> None:
    """Pretrain a masked autoencoder on images.

    The output folder holds model.safetensors (serve it with `mae serve --weights RUN`), metrics.csv, TensorBoard
    events, pictures of reconstructions in previews/, and the state that --resume needs. After SIGTERM or Ctrl-C the run
    saves its state and ends. --resume takes images and options from the folder; options that do not affect the weights
    may be given again.

    Under torchrun several processes share each step: `torchrun --nproc-per-node 2 --no-python mae pretrain …`.

    Exit code: 0 if the run is complete; 2 if the command was wrong or could not continue; 128 + the signal's number if
    a signal ended it.
    """
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    folders = [folder.absolute() for folder in folders or ()]  # the run may be resumed from another folder
    chosen = {name: value for name, value in options.items() if value is not None}
    if "init" in chosen:
        chosen["init"] = absolute_weights(chosen["init"])
    from model.training.distributed import join_processes
    from model.training.pretrain import pretrain as train
    from model.training.pretrain import restore_pretraining
    from model.training.progress import TrainingProgress

    with translate_errors():
        recipe = recipe_of(Recipe, chosen)
        if resume:
            recipe, folders = restore_pretraining(output, recipe, set(chosen), folders)
        else:
            require_bound(recipe)
        if not folders:
            raise CommandError("no images are given: name a folder")
        with join_processes() as context, TrainingProgress(quiet=not context.is_main) as progress:
            weights = train(folders, output, recipe, context, progress, resume)
            progress.say(f"done: {weights}")
