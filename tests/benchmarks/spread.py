"""Whether the spread of several draws tells where a reconstruction is wrong: rank correlations over photographs.

    .venv/bin/python -m tests.benchmarks.spread photographs/ --images 200 --draws 8

For each photograph, Spearman's rank correlation over its patches, of the spread in `/reconstruct?draws=8` with

- the error of the draws: `error` in the answer, the mean over the draws that remove the patch;
- the error of the mean picture: the mean squared difference between its pixels and the photograph's.

Each is taken over all patches with a spread, and over those among them that the first seed removes. The percentiles of
the spread of single pixels show what the view `spread` must be able to show.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from model.engines.build import build
from model.images.folders import find_images
from model.masking import removed_flags
from service.cli.local_pipeline import open_pipeline
from service.inference.images import ImageRequest
from service.inference.reconstruction import Reconstruction, choose_patches_to_remove, mean_of_draws, reconstruct_images
from service.parameters import ReconstructParameters
from service.settings import load_settings

PERCENTILES = (50, 90, 95, 99, 99.9)


def correlations(image: Reconstruction) -> list[float]:
    """Of the spread with both errors: over all patches that have one, and over those that the first mask removes."""
    assert image.patch_spread is not None
    of_mean = np.square(image.pixels.astype(np.float64) - image.patches).mean(axis=1)
    known = np.isfinite(image.patch_spread)
    removed = known & removed_flags(image.visible_indices, len(known)).astype(bool)
    return [
        float(spearmanr(image.patch_spread[patches], error[patches]).statistic)
        for error in (image.error, of_mean)
        for patches in (known, removed)
    ]


def main() -> None:
    """Prints the means and medians over the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    settings = load_settings(weights=options.weights, precision="fp32")
    served = build(settings.engine, lambda step: None)
    paths = sorted(find_images([options.folder]).images)
    random.Random(0).shuffle(paths)
    found, spreads = [], []

    async def measure() -> None:
        async with open_pipeline(served, settings, max_images=options.draws) as pipeline:
            for number, path in enumerate(paths[: options.images]):
                parameters = ReconstructParameters(draws=options.draws, seed=1000 * number)
                plan = choose_patches_to_remove(served.info.config, parameters)
                file = Path(path).read_bytes()
                [draws] = await reconstruct_images(pipeline, ImageRequest([file]), plan)
                image = mean_of_draws(draws)
                assert image.spread is not None
                found.append(correlations(image))
                spreads.append(image.spread[np.isfinite(image.spread)])

    asyncio.run(measure())
    names = [
        f"{error}, {patches}"
        for error in ("error of the draws", "error of the mean picture")
        for patches in ("all patches", "patches that the first seed removes")
    ]
    for name, values in zip(names, np.transpose(found), strict=True):
        print(f"{name:62} mean {values.mean():.3f}, median {np.median(values):.3f}")
    levels = ", ".join(
        f"{percentile} %: {value:.1f}"
        for percentile, value in zip(PERCENTILES, np.percentile(np.concatenate(spreads), PERCENTILES), strict=True)
    )
    print(f"{len(found)} photographs, {options.draws} draws; percentiles of the spread of a pixel: {levels}")


if __name__ == "__main__":
    main()
