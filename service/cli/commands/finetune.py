"""`mae finetune`: one folder per class -> weights with a classification head, for `mae serve` and POST /classify."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from model.training.config import PROBE_OPTIONS, FinetuningRecipe
from service.cli.errors import CommandError
from service.cli.training_runs import absolute_weights, recipe_of, require_bound, translate_errors


def finetune(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Folder that holds one folder of images per class, or a pack of it."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="Folder that the run writes to.")
    ] = Path("run"),
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation", metavar="<path>", help="Folder of the same classes on which accuracy is measured."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")] = False,
    **options: Any,
) -> None:
    """Train a classifier on a pretrained encoder: the whole network, or with --frozen only the head.

    The output folder holds model.safetensors (serve it with `mae serve --weights RUN` for POST /classify), metrics.csv,
    TensorBoard events and the state that --resume needs. Loss and top-1 accuracy on held-out images are measured every
    --validation-minutes and at the end. Without --frozen the encoder changes, and the weights are written without a
    decoder.

    After SIGTERM or Ctrl-C the run saves its state and ends. --resume takes images and options from the folder; options
    that do not affect the weights may be given again. Under torchrun several processes share each step:
    `torchrun --nproc-per-node 2 --no-python mae finetune …`.

    Exit code: 0 if the run is complete; 2 if the command was wrong or could not continue; 128 + the signal's number if
    a signal ended it.
    """
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    # The run may be resumed from another folder.
    folder, validation = (path and path.absolute() for path in (folder, validation))
    chosen = {name: value for name, value in options.items() if value is not None}
    if "weights" in chosen:
        chosen["weights"] = absolute_weights(chosen["weights"])
    from model.training.distributed import join_processes
    from model.training.finetune import finetune as train
    from model.training.finetune import restore_finetuning
    from model.training.linear_probing import fit_linear_probe
    from model.training.progress import TrainingProgress

    with translate_errors():
        recipe = recipe_of(FinetuningRecipe, chosen)
        if resume:
            recipe, folder, validation = restore_finetuning(output, recipe, set(chosen), folder, validation)
        elif recipe.frozen:
            require_probe_options(chosen)
        else:
            require_step_options(recipe, chosen)
        if folder is None:
            raise CommandError("no images are given: name a folder of classes")
        if validation is not None and "validation_share" in chosen:
            raise CommandError("--validation and --validation-share exclude each other")
        with join_processes() as context, TrainingProgress(quiet=not context.is_main) as progress:
            run = fit_linear_probe if recipe.is_fitted else train
            weights = run(folder, validation, output, recipe, context, progress, resume)
            progress.say(f"done: {weights}")


def require_probe_options(given: Iterable[str]) -> None:
    """Checks that no option of training by steps stands beside --frozen.

    Raises:
        CommandError: one does; the message names it.
    """
    for name in given:
        if name not in PROBE_OPTIONS:
            flag = name.replace("_", "-")
            raise CommandError(f"--frozen fits the head by LBFGS and makes no steps: leave --{flag} out")


def require_step_options(recipe: FinetuningRecipe, given: Container[str]) -> None:
    """Checks that training by steps has a bound, and no option of linear probing alone.

    Raises:
        CommandError: it has none, or such an option was given.
    """
    if "probe_iterations" in given:
        raise CommandError("--probe-iterations belongs to --frozen")
    require_bound(recipe)
