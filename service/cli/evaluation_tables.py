"""Tables of the results of `mae evaluate`."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from model.evaluation.results import Evaluation
from service.cli.tables import TABLE_STYLE, add_number_columns


def evaluation_tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """The text and tables to print, in order."""
    images = evaluation.images
    fitted = f"{images.train} fitted on, {images.classes} classes, " if images.classes else ""
    yield Text(
        f"{evaluation.model}, {evaluation.backend} {evaluation.precision}\n"
        f"{images.measured} images measured, {fitted}{len(images.broken)} broken; {images.split}\n"
    )
    if evaluation.largest_class is not None:
        yield Text(f"Always naming the largest class would score {evaluation.largest_class:.3f}.\n")
        yield _classification_table(evaluation)
    if evaluation.reconstruction:
        if evaluation.classification:
            yield Text()
        yield _reconstruction_table(evaluation)


def _classification_table(evaluation: Evaluation) -> Table:
    title = f"Accuracy of the vote of {evaluation.neighbours} neighbours (k-NN) and of a linear probe"
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("vectors")
    add_number_columns(table, "patches", "k-NN raw", "centred", "whitened", "probe", "iterations")
    for result in evaluation.classification:
        is_baseline = result.features == "thumbnail"
        if is_baseline:
            table.add_section()
        accuracies = (result.knn.raw, result.knn.centred, result.knn.whitened, result.linear.accuracy)
        table.add_row(
            f"{result.features} of 16 x 16" if is_baseline else result.features,
            "" if is_baseline else f"{result.keep:.0%}",
            *(f"{accuracy:.3f}" for accuracy in accuracies),
            f"{result.linear.iterations}{'' if result.linear.converged else '*'}",
        )
    if not all(result.linear.converged for result in evaluation.classification):
        table.caption = "* the solver was stopped early; --probe-iterations allows it more iterations"
    return table


def _reconstruction_table(evaluation: Evaluation) -> Table:
    pixels = "pixels normalised within each patch" if evaluation.norm_pix_loss else "standardised pixels"
    table = Table(title="Reconstruction of removed patches; PSNR and SSIM of the composite", **TABLE_STYLE)
    table.caption = f"loss: squared error in {pixels}"
    table.add_column("mask")
    add_number_columns(table, "removed", "loss", "PSNR, dB", "SSIM")
    for result in evaluation.reconstruction:
        table.add_row(
            result.strategy,
            f"{result.mask_ratio:.0%}",
            f"{result.loss:.3f}",
            f"{result.psnr_db:.2f}",
            f"{result.ssim:.3f}",
        )
    return table
