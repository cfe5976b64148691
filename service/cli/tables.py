"""Figures of an evaluation, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from model.evaluation.results import Evaluation

LOOK: Mapping[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left"}


def tables_of(found: Evaluation) -> Iterator[RenderableType]:
    """What to print, in order."""
    images = found.images
    yield Text(
        f"{found.model}, {found.backend} {found.precision}\n"
        f"{images.measured} images measured, {images.train} fitted on, {images.classes} classes, "
        f"{len(images.broken)} broken; {images.split}\n"
        f"Naming the largest class every time scores {found.largest_class:.3f}.\n"
    )
    yield _classification(found)
    if found.reconstruction:
        yield Text()
        yield _reconstruction(found)


def _classification(found: Evaluation) -> Table:
    table = Table(title=f"Images told right by {found.neighbours} neighbours (k-NN) and by linear probe", **LOOK)
    table.add_column("vectors")
    for name in ("patches", "k-NN raw", "centred", "whitened", "probe", "iterations"):
        table.add_column(name, justify="right")
    for row in found.classification:
        baseline = row.features == "thumbnail"
        if baseline:
            table.add_section()
        table.add_row(
            f"{row.features} of 16 x 16" if baseline else row.features,
            "" if baseline else f"{row.keep:.0%}",
            *(f"{share:.3f}" for share in (row.knn.raw, row.knn.centred, row.knn.whitened, row.linear.accuracy)),
            f"{row.linear.iterations}{'' if row.linear.converged else '*'}",
        )
    if not all(row.linear.converged for row in found.classification):
        table.caption = "* where the solver was stopped; --probe-iterations gives it more"
    return table


def _reconstruction(found: Evaluation) -> Table:
    pixels = "pixels normalised within each patch" if found.norm_pix_loss else "standardised pixels"
    table = Table(title="Removed patches as painted; PSNR and SSIM of the composite", **LOOK)
    table.caption = f"loss: squared error in {pixels}"
    table.add_column("mask")
    for name in ("removed", "loss", "PSNR, dB", "SSIM"):
        table.add_column(name, justify="right")
    for row in found.reconstruction:
        shares = (f"{row.mask_ratio:.0%}", f"{row.loss:.3f}", f"{row.psnr_db:.2f}", f"{row.ssim:.3f}")
        table.add_row(row.strategy, *shares)
    return table
