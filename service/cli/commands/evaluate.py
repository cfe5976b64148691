"""`mae evaluate`: what a model is worth on a folder of classes, and whitening for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from model.arrays import Bytes
from model.checkpoints.locate import HUB_PREFIX, PACKAGED, locate
from model.engines.base import Engine, EngineError
from model.evaluation.config import EvalConfig
from model.evaluation.evaluate import EvaluationError, Task, drawn, panels
from model.evaluation.evaluate import evaluate as run
from model.evaluation.extract import Read, Unreadable
from model.evaluation.whitening import WhiteningError, fit_pools
from model.images.folders import ClassFolderError, find_images, labelled_images
from model.images.png import png
from service.cli.errors import CommandError
from service.cli.files import require_folder, write_output
from service.cli.local_pipeline import build_engine, said_of
from service.cli.options import parameters_of, settings_of
from service.cli.progress import Report
from service.cli.tables import tables_of
from service.errors import ServiceError
from service.inference.image_decoder import ImageDecoder
from service.settings import Settings

ENOUGH = 5
"""Images for each number of a vector, below which variances are guesses."""


def evaluate(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="<path>", help="Images to measure on, a folder for each class.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train", metavar="<path>", help="Images to fit classifiers on; by default a part of those in --data."
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="<path>", help="Write all figures as JSON; - is standard output.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="<path>", help="Write reconstructions of a few images as PNG.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Measure nothing: fit whitening on the images and store it with the weights.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="<path>", help="For --fit: safetensors file to write instead of the weights'."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Measure what a model is worth on images in folders, one for each class.

    Classes are told by the vote of the nearest neighbours (cosine; the plain majority, ties to the nearest) and by
    linear probe (logistic regression on standardised vectors), for both pooled vectors and several shares of the
    patches, beside the same of thumbnails of 16 x 16 pixels. Neighbours are taken raw, centred and PCA-whitened, by
    what is fitted on the training images. Removed patches are reconstructed at several mask ratios and strategies:
    loss, and PSNR and SSIM of the composite. Figures repeat with the seed.

    --fit takes images at any depth, without classes: PCA whitening of both pooled vectors goes into the weights' own
    file or into OUTPUT, for `mae embed --whiten` and POST /embed?whiten=true. It changes the weights' hash.

    Exit code: 0, also if broken images were skipped, which are named on standard error; 2 if the command was wrong or
    could not go on.
    """
    choices, settings = parameters_of(EvalConfig, given), settings_of(given)
    for path in (json, sheet, output):
        if path is not None:
            require_folder(path)
    try:
        if fit:
            if json is not None or sheet is not None:
                raise CommandError("--fit measures nothing, so there is nothing for --json and --sheet")
            _fit(_given(train or data, "--data or --train"), choices, settings, output)
        else:
            if output is not None:
                raise CommandError("-o goes with --fit: figures are written by --json and --sheet")
            _evaluate(_given(data, "--data"), train, json, sheet, choices, settings)
    except EngineError as error:
        raise CommandError(f"the engine failed: {error}") from error
    except (ClassFolderError, EvaluationError, WhiteningError) as error:
        raise CommandError(str(error)) from error


def _evaluate(
    data: Path, train: Path | None, json: Path | None, sheet: Path | None, choices: EvalConfig, settings: Settings
) -> None:
    outputs = [str(path) for path in (json, sheet)]
    if outputs == ["-", "-"]:
        raise CommandError("--json and --sheet cannot both go to standard output")
    fitted = None if train is None else labelled_images(train)
    task = Task.of(labelled_images(data, fitted and fitted.classes), fitted, choices)
    engine = build_engine(settings).engine
    if sheet is not None and not engine.info.config.has_decoder:
        raise CommandError(f"{engine.info.model} has no decoder: there is nothing to show on a sheet")
    with _reader(engine, settings) as read, Report(task.images) as report:
        found = run(engine, read, task, choices, report, report.stage)
        shown = None if sheet is None else panels(engine, read, task, choices)
    if json is not None:
        write_output(json, found.model_dump_json(indent=1).encode() + b"\n")
    if sheet is not None and shown is not None:
        write_output(sheet, png(shown))
    if "-" not in outputs:
        console = Console(markup=False, highlight=False)
        for part in tables_of(found):
            console.print(part)
    if report.skipped:
        report.say(f"{report.skipped} of {task.images} images could not be used")


def _fit(folder: Path, choices: EvalConfig, settings: Settings, output: Path | None) -> None:
    if output is not None and output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    paths, refused = find_images([folder])
    if not paths:
        raise CommandError(f"there are no images in {folder}")
    engine = build_engine(settings).engine
    target = _target(engine, settings, output)
    numbers = drawn(len(paths), choices).tolist()
    with _reader(engine, settings) as read, Report(len(numbers) + len(refused)) as report:
        for path, reason in refused:
            report.skip(f"{path}: {reason}")
        whitening, count = fit_pools(engine, read, paths, numbers, report)
    from model.evaluation.store import store_whitening

    store_whitening(locate(settings.weights, settings.model), target, whitening, settings.model, settings.norm_pix_loss)
    said = ", ".join(f"{pool} to {found.matrix.shape[1]} numbers" for pool, found in whitening.items())
    print(f"{target}: whitening of {said}, fitted on {count} images")
    if report.skipped:
        report.say(f"{report.skipped} images could not be used")
    if count < ENOUGH * engine.info.config.embed_dim:
        report.say(f"{count} images are few for whitening of {engine.info.config.embed_dim} numbers: fit on more")


def _target(engine: Engine, settings: Settings, output: Path | None) -> Path:
    """The file that the whitening goes into."""
    source = locate(settings.weights, settings.model)
    checked = {"IMAGE_SIZE": settings.image_size, "PREPROCESS": settings.preprocess}
    for name, value in checked.items():
        if value is not None:
            raise CommandError(f"{name} is set: whitening goes with the model's own size and preprocessing")
    if output is not None:
        return output.resolve()
    if settings.weights is None or source.path.parent == PACKAGED:
        raise CommandError(f"the packaged weights of {source.name} stay as they are: pass -o OUT.safetensors")
    if settings.weights.startswith(HUB_PREFIX):
        raise CommandError(f"{settings.weights} is the hub's: pass -o OUT.safetensors")
    if engine.info.layout != "mae-serve":
        raise CommandError(
            f"{source.path} is of the layout {engine.info.layout}, which has no room for whitening: "
            "pass -o OUT.safetensors, or make it ours first by mae convert"
        )
    return source.path.resolve()


def _given(folder: Path | None, option: str) -> Path:
    if folder is None:
        raise CommandError(f"no images are given: name a folder by {option}")
    return folder


@contextmanager
def _reader(engine: Engine, settings: Settings) -> Iterator[Read]:
    """Reads images as the service does."""
    decoder = ImageDecoder(engine.info.config, engine.info.preprocessing, settings.max_pixels, settings.decode_threads)

    def read(path: str) -> Bytes:
        try:
            return decoder.decode(Path(path).read_bytes(), 0).patches
        except (OSError, ServiceError) as error:
            raise Unreadable(said_of(path, error)) from error

    try:
        yield read
    finally:
        decoder.close()
