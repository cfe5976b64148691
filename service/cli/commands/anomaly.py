"""`mae anomaly fit` and `mae anomaly test`: a memory bank of normal images, and how well it finds faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer

from model.anomaly.fit import FitConfig, FitError, fit_memory_bank
from model.anomaly.measure import AnomalyResult, Flags, measure_anomalies
from model.arrays import Floats
from model.checkpoints.locate import locate
from model.engines.base import ServedModel
from model.images.folders import find_images
from model.images.packs import read_image_file
from service.cli.errors import CommandError, describe_file_error
from service.cli.files import require_folder, write_output
from service.cli.image_files import SkippedFile, most_images_at_once, require_images, run_pipeline
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.cli.tables import print_values
from service.errors import ServiceError
from service.inference.anomaly import AnomalyPlan, encode_images
from service.inference.image_decoder import HALF, ImageDecoder
from service.inference.images import ImageRequest
from service.inference.pipeline import Pipeline
from service.parameters import MAX_ANOMALY_PASSES, AnomalyParameters
from service.settings import Settings

T = TypeVar("T")
Compute = Callable[[bytes], Awaitable[T]]


def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of normal images, at any depth.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="Safetensors file to write.")],
    **options: Any,
) -> None:
    """Fit a memory bank of normal images, and store it with the weights.

    OUTPUT gets all that the weights hold, and patch tokens of the normal images beside it. Served by `mae serve
    --weights OUTPUT`, POST /anomaly scores each patch of an image by its distance to these tokens. The images also give
    the threshold: each of five parts of them is scored against a bank of the others. The hash of the weights changes.

    Exit code: 0, even if broken images were skipped, which standard error names; 2 if the command was wrong or could
    not continue.
    """
    config, settings = parameters_of(FitConfig, options), settings_of(options)
    if output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    require_folder(output)
    for name, value in (("IMAGE_SIZE", settings.image_size), ("PREPROCESS", settings.preprocess)):
        if value is not None:
            raise CommandError(
                f"{name} is set, but a fit is for the model's own image size and preprocessing: leave it out"
            )
    found = require_images([folder])
    paths = found.images
    if len(paths) > config.limit:
        drawn = np.random.default_rng(config.seed).choice(len(paths), config.limit, replace=False)
        paths = [paths[number] for number in np.sort(drawn)]
    source = locate(settings.weights, settings.model)
    served = build_engine(settings)
    with ProgressBar(len(paths) + len(found.refused), stage="encoding") as progress:
        for path, reason in found.refused:
            progress.skip(f"{path}: {reason}")
        if found.left_out.sentence:
            progress.write_line(found.left_out.sentence)

        async def encode() -> list[tuple[str, Floats]]:
            max_images = most_images_at_once(served.info, settings)
            async with open_pipeline(served, settings, max_images) as pipeline:

                async def compute(data: bytes) -> Floats:
                    [(_, tokens)] = await encode_images(pipeline, ImageRequest([data]))
                    return tokens

                return await _run(pipeline, paths, compute, max_images, progress)

        tokens = [tokens for _, tokens in asyncio.run(encode())]
        progress.stage("choosing tokens")
        try:
            if not tokens:
                raise FitError("none of the images can be used")
            bank = fit_memory_bank(np.stack(tokens), config.bank_tokens, served.info.config.image_size, config.seed)
        except FitError as error:
            raise CommandError(f"{folder}: {error}") from error
    from model.evaluation.store import store_heads

    store_heads(
        source,
        output.resolve(),
        lambda heads: replace(heads, memory_bank=bank),
        settings.model,
        settings.norm_pix_loss,
        settings.heads,
    )
    info, default = bank.info, AnomalyParameters().false_alarms
    print(
        f"{output}: memory bank of {info.tokens} tokens, {info.bytes / 1e6:.1f} MB, fitted on {info.images} images;"
        f" threshold {bank.threshold(default):.4g} for {default:g} false alarms"
    )
    if default * (info.images + 1) < 1:
        progress.write_line(
            f"{info.images} images are few: below {1 / (info.images + 1):.2g} false alarms, thresholds are extrapolated"
        )


def test(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with images in good/ and bad/, and masks of the bad ones (white = fault) in masks/, if there"
            " are any, under the same names.",
        ),
    ],
    json: Annotated[
        Path | None, typer.Option("--json", metavar="<path>", help="Write the figures as JSON; - is standard output.")
    ] = None,
    **options: Any,
) -> None:
    """Measure how well faults are found, on good and bad images that a fit has not seen.

    The figures are the area under the ROC curve (AUROC) of the images' scores, that of the pixels' scores where there
    are masks, and F1 at the threshold where the weights hold a memory bank. The scores are those of POST /anomaly for
    the same options.

    Exit code: 0, even if broken images were skipped, which standard error names; 2 if the command was wrong or could
    not continue.
    """
    parameters, settings = parameters_of(AnomalyParameters, options), settings_of(options)
    if json is not None:
        require_folder(json)
    good, bad = (require_images([folder / part]).images for part in ("good", "bad"))
    masks = _masks_of(bad, folder / "masks") if (folder / "masks").is_dir() else None
    served = build_engine(settings)
    with ProgressBar(len(good) + len(bad), stage="scoring") as progress:
        result, plan = asyncio.run(_test(served, settings, parameters, good, bad, masks, progress))
    if json is not None:
        write_output(json, result.model_dump_json(indent=1).encode() + b"\n")
    if str(json) != "-":
        print_values(_describe(result, plan, parameters))
    if progress.skipped:
        progress.write_line(f"{progress.skipped} of {len(good) + len(bad)} images could not be used")


async def _test(
    served: ServedModel,
    settings: Settings,
    parameters: AnomalyParameters,
    good: list[str],
    bad: list[str],
    masks: dict[str, str] | None,
    progress: ProgressBar,
) -> tuple[AnomalyResult, AnomalyPlan]:
    """Scores all images with one plan, so with the same masks, and measures.

    Raises:
        CommandError: no image of one kind can be used, or a mask cannot be used.
    """
    most = most_images_at_once(served.info, settings)
    async with open_pipeline(served, settings, most * MAX_ANOMALY_PASSES) as pipeline:
        plan = AnomalyPlan.of(parameters, pipeline)
        max_running = max(2, most // max(1, len(plan.visible_indices)))

        async def compute(data: bytes) -> Floats:
            [anomaly] = await plan.detect(pipeline, ImageRequest([data]))
            return anomaly.scores

        of_good = await _run(pipeline, good, compute, max_running, progress)
        of_bad = await _run(pipeline, bad, compute, max_running, progress)
        for name, scored in (("good", of_good), ("bad", of_bad)):
            if not scored:
                raise CommandError(f"none of the images in {name}/ can be used")
        faulty = None
        if masks is not None:
            faulty = [_read_mask(pipeline.image_decoder, path, masks[path]) for path, _ in of_bad]
    scores_of_good, scores_of_bad = ([scores for _, scores in scored] for scored in (of_good, of_bad))
    return measure_anomalies(scores_of_good, scores_of_bad, faulty, plan.threshold), plan


async def _run(
    pipeline: Pipeline, paths: list[str], compute: Compute[T], max_running: int, progress: ProgressBar
) -> list[tuple[str, T]]:
    """The results of all images that can be used, with their paths."""
    results: list[tuple[str, T]] = []
    async with aclosing(run_pipeline(pipeline, paths, compute, max_running)) as computed:
        async for path, result in computed:
            if isinstance(result, SkippedFile):
                progress.skip(result.reason)
            else:
                results.append((path, result))
                progress.advance()
    return results


def _masks_of(bad: list[str], folder: Path) -> dict[str, str]:
    """The path of each bad image's mask: the image in `folder` of the same name, whatever its ending.

    Raises:
        CommandError: an image has no mask.
    """
    by_name = {Path(path).stem: path for path in find_images([folder]).images}
    for path in bad:
        if Path(path).stem not in by_name:
            raise CommandError(f"{path} has no mask of the same name in {folder}")
    return {path: by_name[Path(path).stem] for path in bad}


def _read_mask(decoder: ImageDecoder, path: str, mask: str) -> Flags:
    """The faulty pixels of the model's square of a bad image, [S, S]: those that are more than half white in the mask.

    Raises:
        CommandError: the mask cannot be used.
    """
    try:
        decoded = decoder.decode_when_free(read_image_file(path), 0)
        return np.asarray(decoder.read_mask_square(read_image_file(mask), decoded) > HALF)
    except (OSError, ServiceError) as error:
        raise CommandError(describe_file_error(mask, error)) from error


def _describe(result: AnomalyResult, plan: AnomalyPlan, parameters: AnomalyParameters) -> list[tuple[str, str]]:
    if plan.bank is not None:
        details = f"{len(plan.bank.tokens)} tokens of {len(plan.bank.scores)} normal images"
    else:
        details = f"{len(plan.visible_indices)} passes, seed {plan.seed}"
    rows = [
        ("scored by", f"{plan.method}, {details}"),
        ("images", f"{result.good} good, {result.bad} bad"),
        ("AUROC of images", f"{result.image_auroc:.3f}"),
        ("AUROC of pixels", "there are no masks" if result.pixel_auroc is None else f"{result.pixel_auroc:.3f}"),
    ]
    if result.threshold is None:
        return [*rows, ("threshold", "none: the scores are raw")]
    flagged = f"{result.flagged_good} of {result.good} good and {result.flagged_bad} of {result.bad} bad flagged"
    return [
        *rows,
        ("threshold", f"{result.threshold:.4g} for {parameters.false_alarms:g} false alarms: {flagged}"),
        ("F1", f"{result.f1:.3f}"),
    ]
