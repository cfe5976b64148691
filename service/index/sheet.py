"""Sheets of thumbnails: one row per query or group of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.arrays import Bytes
from model.images.errors import ImageError
from model.images.packs import read_image_file
from service.index.thumbnails import SIDE, make_thumbnail

GAP = 8
CAPTION = 32
"""Height of the two lines below a thumbnail, in pixels."""
FONT_SIZE = 12
GREY, BLACK, PALE = (110, 110, 110), (0, 0, 0), (235, 235, 235)


class Cell(NamedTuple):
    """An image on a sheet."""

    file: str
    """Its path; a file that cannot be shown becomes a grey box that says why."""
    caption: str
    """A line above the file's name, such as the similarity."""


def draw_sheet(rows: Sequence[Sequence[Cell]]) -> Bytes:
    """Draws rows of thumbnails with their captions and names, uint8 [H, W, 3].

    Files are read when they are drawn. One that is missing, cannot be read, or lies in a bucket, which is not asked, is
    drawn as a grey box.
    """
    columns = max(len(row) for row in rows)
    width, height = SIDE + GAP, SIDE + CAPTION + GAP
    sheet = Image.new("RGB", (columns * width + GAP, len(rows) * height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            left, top = GAP + column * width, GAP + number * height
            picture = _picture(cell.file)
            if isinstance(picture, str):
                draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), PALE)
                draw.text((left + SIDE / 2, top + SIDE / 2), picture, GREY, font, anchor="mm")
            else:
                sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
            draw.text((left, top + SIDE + 2), _fit(cell.caption, font), BLACK, font)
            name = _fit(Path(cell.file).name, font)
            draw.text((left, top + SIDE + 2 + CAPTION / 2), name, GREY, font)
    return np.asarray(sheet)


def _picture(file: str) -> Image.Image | str:
    """The thumbnail of a file, or why there is none."""
    if "://" in file:
        return "in a bucket"
    try:
        return make_thumbnail(read_image_file(file))
    except FileNotFoundError:
        return "missing"
    except (OSError, ImageError):
        return "cannot be read"


def _fit(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text on one line, or its end if it is longer than the line."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    if font.getlength(name) <= SIDE:
        return name
    while name and font.getlength(f"…{name}") > SIDE:
        name = name[1:]
    return f"…{name}"
