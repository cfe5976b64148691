"""`mae evaluate`: measures a model on a folder of classes, and fits whitening for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.arrays import Bytes
from model.checkpoints.locate import HUB_PREFIX, PACKAGED, locate
from model.engines.base import Engine, EngineError
from model.evaluation.config import EvalConfig
from model.evaluation.evaluate import EvalSplit, EvaluationError, choose_images, render_sheet
from model.evaluation.evaluate import evaluate as measure
from model.evaluation.extract import Reader, UnreadableImage
from model.evaluation.whitening import WhiteningError, fit_pools
from model.images.folders import (
    ClassFolderError,
    find_images,
    images_with_or_without_classes,
    labelled_images,
)
from model.images.packs import read_image_file
from model.images.png import encode_png
from service.cli.errors import CommandError, describe_file_error
from service.cli.evaluation_tables import evaluation_tables
from service.cli.files import require_folder, write_output
from service.cli.local_pipeline import build_engine
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.errors import ServiceError
from service.inference.decode_memory import DecodeMemory
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import LocalBudget
from service.settings import Settings

ENOUGH_IMAGES = 5
"""Images for each number of a vector that whitening should be fitted on: with fewer, the variances are unreliable."""


def evaluate(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="<path>", help="Folder of images to measure on, with or without one folder per class."
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train", metavar="<path>", help="Folder of images to fit classifiers on; by default a part of --data."
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="<path>", help="Write all figures as JSON; - is standard output.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="<path>", help="Write reconstructions of a few images as one PNG.")
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Fit whitening on the images and store it with the weights, instead of measuring."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="<path>",
            help="Safetensors file for --fit to write, instead of changing that of the weights.",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Measure a model on images, which may be sorted into folders, one folder per class.

    Without classes, reconstruction alone is measured: the decoder reconstructs removed patches, for several mask ratios
    and strategies. The figures are the loss, and PSNR and SSIM of the composite.

    With classes, the vectors are judged by two classifiers as well: the vote of the nearest neighbours (cosine; the
    plain majority, the nearest decides a tie) and a linear probe (logistic regression on standardised vectors). Both
    are measured for both pooled vectors and several shares of visible patches, beside thumbnails of 16 x 16 pixels as a
    baseline. Neighbours are found among raw, centred and PCA-whitened vectors; the training images fix the mean and the
    whitening. The same seed gives the same figures.

    --fit searches for images at any depth and needs no classes. It writes PCA whitening of both pooled vectors into the
    file of the weights, or into OUTPUT, for `mae embed --whiten` and POST /embed?whiten=true. This changes the hash of
    the weights.

    Exit code: 0, even if broken images were skipped, which standard error names; 2 if the command was wrong or could
    not continue.
    """
    config, settings = parameters_of(EvalConfig, options), settings_of(options)
    for path in (json, sheet, output):
        if path is not None:
            require_folder(path)
    try:
        if fit:
            if json is not None or sheet is not None:
                raise CommandError("--fit measures nothing, so --json and --sheet have nothing to write")
            _fit(_require_images(train or data, "--data or --train"), config, settings, output)
        else:
            if output is not None:
                raise CommandError("-o belongs to --fit: --json and --sheet write the figures")
            _evaluate(_require_images(data, "--data"), train, json, sheet, config, settings)
    except EngineError as error:
        raise CommandError(f"the engine failed: {error}") from error
    except (ClassFolderError, EvaluationError, WhiteningError) as error:
        raise CommandError(str(error)) from error


def _evaluate(
    data: Path, train: Path | None, json: Path | None, sheet: Path | None, config: EvalConfig, settings: Settings
) -> None:
    outputs = [str(path) for path in (json, sheet)]
    if outputs == ["-", "-"]:
        raise CommandError("--json and --sheet cannot both go to standard output")
    training_images = None if train is None else labelled_images(train)
    if training_images is None:
        images = images_with_or_without_classes(data)
    else:
        images = labelled_images(data, training_images.classes)
    task = EvalSplit.choose(images, training_images, config)
    engine = build_engine(settings).engine
    if sheet is not None and not engine.info.config.has_decoder:
        raise CommandError(f"{engine.info.model} has no decoder, which --sheet needs")
    read = _image_reader(engine, settings)
    with ProgressBar(task.images) as progress:
        for part in {id(part): part for part in (task.train, task.data)}.values():
            if part.left_out.sentence:
                progress.write_line(part.left_out.sentence)
        evaluation = measure(engine, read, task, config, progress, progress.stage)
        picture = None if sheet is None else render_sheet(engine, read, task, config)
    if json is not None:
        write_output(json, evaluation.model_dump_json(indent=1).encode() + b"\n")
    if sheet is not None and picture is not None:
        write_output(sheet, encode_png(picture))
    if "-" not in outputs:
        console = Console(markup=False, highlight=False)
        for table in evaluation_tables(evaluation):
            console.print(table)
    if progress.skipped:
        progress.write_line(f"{progress.skipped} of {task.images} images could not be used")


def _fit(folder: Path, config: EvalConfig, settings: Settings, output: Path | None) -> None:
    if output is not None and output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    found = find_images([folder])
    paths, refused = found.images, found.refused
    if not paths:
        raise CommandError("; ".join(filter(None, [f"there are no images in {folder}", found.left_out.sentence])))
    target = _whitening_target(settings, output)
    engine = build_engine(settings).engine
    numbers = choose_images(len(paths), config).tolist()
    read = _image_reader(engine, settings)
    with ProgressBar(len(numbers) + len(refused)) as progress:
        for path, reason in refused:
            progress.skip(f"{path}: {reason}")
        if found.left_out.sentence:
            progress.write_line(found.left_out.sentence)
        whitening, count = fit_pools(engine, read, paths, numbers, progress)
    from model.evaluation.store import store_heads

    source = locate(settings.weights, settings.model)
    store_heads(
        source,
        target,
        lambda heads: replace(heads, whitening=whitening),
        settings.model,
        settings.norm_pix_loss,
        settings.heads,
    )
    sizes = ", ".join(f"{pool} to {fitted.matrix.shape[1]} numbers" for pool, fitted in whitening.items())
    print(f"{target}: whitening of {sizes}, fitted on {count} images")
    if progress.skipped:
        progress.write_line(f"{progress.skipped} images could not be used")
    if count < ENOUGH_IMAGES * engine.info.config.embed_dim:
        progress.write_line(
            f"{count} images are few for whitening of {engine.info.config.embed_dim} numbers: fit on more"
        )


def _whitening_target(settings: Settings, output: Path | None) -> Path:
    """The file that the whitening is written to.

    Raises:
        CommandError: there is no file that may be changed, or the whitening would not fit the weights.
    """
    source = locate(settings.weights, settings.model)
    for name, value in (("IMAGE_SIZE", settings.image_size), ("PREPROCESS", settings.preprocess)):
        if value is not None:
            raise CommandError(
                f"{name} is set, but whitening is stored for the model's own image size and preprocessing: leave it out"
            )
    if output is not None:
        return output.resolve()
    if settings.weights is None or source.path.parent == PACKAGED:
        raise CommandError(f"the packaged weights of {source.name} are never changed: pass -o OUT.safetensors")
    if settings.weights.startswith(HUB_PREFIX):
        raise CommandError(f"{settings.weights} is on the hub, where it cannot be changed: pass -o OUT.safetensors")
    if source.config is None:
        raise CommandError(
            f"{source.path} is not in mae-serve's own layout, and no other one can hold whitening: "
            "pass -o OUT.safetensors, or convert it first with mae convert"
        )
    return source.path.resolve()


def _require_images(folder: Path | None, option: str) -> Path:
    if folder is None:
        raise CommandError(f"no images are given: name a folder with {option}")
    return folder


def _image_reader(engine: Engine, settings: Settings) -> Reader:
    """A function that reads an image file as the service does, uint8 patches [N, P]."""
    memory = DecodeMemory(LocalBudget(settings.max_decode_bytes))
    decoder = ImageDecoder(engine.info.config, engine.info.preprocessing, settings.max_pixels, memory)

    def read(path: str) -> Bytes:
        try:
            return decoder.decode_when_free(read_image_file(path), 0).patches
        except (OSError, ServiceError) as error:
            raise UnreadableImage(describe_file_error(path, error)) from error

    return read
