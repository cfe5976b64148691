"""Precision and recall of `mae duplicates` by kind of near-duplicate, among the images of an index.

    .venv/bin/python -m tests.benchmarks.near_duplicates photos.lance [--pixels 0.7 0.85] [--sheet sheet.png]

300 images of the index are drawn, and a near-duplicate of each is made: resized to half, recompressed at quality 40,
cropped by 10 % of its width and height, mirrored, or grey (60 of each; saved at quality 90). They are added to a copy
of the index by `mae index`. A pair of images in a group is right if one was made from the other, or both from the same
image. Pairs of images that were there before are counted apart: collections have near-duplicates of their own. The
sheet shows 30 groups of those by default.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.images.png import encode_png
from service.cli.main import main as mae
from service.index.duplicates import PIXELS, Duplicate, find_duplicates
from service.index.sheet import Cell, draw_sheet
from service.index.store import ImageIndex

KINDS = ("resized", "recompressed", "cropped", "mirrored", "grey")
COUNT = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("--pixels", type=float, nargs="*", default=[])
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made").mkdir()
        files = sorted(ImageIndex.open(arguments.index).files())
        drawn = np.random.default_rng(0).choice(len(files), COUNT, replace=False)
        source_of: dict[str, str] = {}
        for place, number in enumerate(drawn):
            kind = KINDS[place % len(KINDS)]
            target = (folder / "made" / f"{kind}-{number}.jpg").resolve()
            make_near_duplicate(files[number], kind, target)
            source_of[str(target)] = files[number]
        copy = folder / "photos.lance"
        shutil.copytree(arguments.index, copy)
        try:
            mae(["index", str(folder / "made"), "-o", str(copy)])
        except SystemExit as ended:
            if ended.code:
                sys.exit(ended.code)
        groups = report(ImageIndex.open(copy), source_of, [PIXELS, *arguments.pixels])
        if arguments.sheet:
            draw_groups(arguments.sheet, [group for group in groups if not {row.file for row in group} & {*source_of}])


def make_near_duplicate(source: str, kind: str, target: Path) -> None:
    """Writes another version of an image."""
    with Image.open(source) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    width, height = image.size
    quality = 90
    if kind == "resized":
        image = image.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.LANCZOS)
    elif kind == "recompressed":
        quality = 40
    elif kind == "cropped":
        image = image.crop((round(0.05 * width), round(0.05 * height), round(0.95 * width), round(0.95 * height)))
    elif kind == "mirrored":
        image = ImageOps.mirror(image)
    else:
        image = ImageOps.grayscale(image)
    image.save(target, quality=quality)


def report(index: ImageIndex, source_of: dict[str, str], correlations: list[float]) -> list[list[Duplicate]]:
    """Prints what is found by some correlations of pixels; returns the groups of the first."""
    results = []
    for pixels in correlations:
        began = time.process_time()
        found = find_duplicates(index, pixels=pixels)
        results.append(found.groups)
        print(f"pixels {pixels}: {time.process_time() - began:.1f} s of CPU time, {found.unread} files not read")
        pairs = {frozenset(pair) for group in found.groups for pair in combinations([row.file for row in group], 2)}
        kind_of = {file: Path(file).name.split("-")[0] for file in source_of}
        for kind in KINDS:
            made = [file for file in source_of if kind_of[file] == kind]
            hits = sum(frozenset((file, source_of[file])) in pairs for file in made)
            named = [pair for pair in pairs if any(kind_of.get(file) == kind for file in pair)]
            right = sum(len({source_of.get(file, file) for file in pair}) == 1 for pair in named)
            precision = right / max(1, len(named))
            print(f"  {kind}: recall {hits / len(made):.2f}, precision {precision:.2f} ({len(named)} pairs)")
        others = [pair for pair in pairs if not any(file in source_of for file in pair)]
        print(f"  {len(found.groups)} groups; {len(others)} pairs of images that were there before")
    return results[0]


def draw_groups(path: Path, groups: list[list[Duplicate]]) -> None:
    """Draws 30 of the groups, at most 4 images of each."""
    drawn = np.random.default_rng(0).permutation(len(groups))[:30]
    rows = [[Cell(row.file, f"{row.pixels or 0:.3f}") for row in groups[number][:4]] for number in drawn]
    path.write_bytes(encode_png(draw_sheet(rows)))


if __name__ == "__main__":
    main()
