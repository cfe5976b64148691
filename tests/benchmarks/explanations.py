"""Deletion curves of POST /explain beside a random order: how fast the class's probability falls, patch by patch.

    .venv/bin/python -m tests.benchmarks.explanations photographs/ --weights my-classes --images 200

For each photograph, the most probable class is explained. Then the patches are left out in the order of their shares,
the largest first, and the probability of that class is computed after every 14 of 196 patches. The area under this
curve, as the mean of its points, is small if the first patches carry the class. The random orders are the mean of
several. With --target similarity, the score is the cosine with the next photograph of the list.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import POOL_INDEX
from model.engines.base import ServedModel
from model.engines.build import build
from model.images.folders import find_images
from service.cli.local_pipeline import open_pipeline
from service.inference.explanation import Explanation, ExplanationPlan, explain_images
from service.inference.images import ImageRequest
from service.parameters import ExplainParameters
from service.settings import Settings, load_settings

POINTS = 14
"""Points of a curve."""
RANDOM_ORDERS = 2
Score = Callable[[Floats], float]
"""The score of pooled vectors, float32 [2, D]."""


def deletion_curve(served: ServedModel, patches: Bytes, order: Indices, score: Score) -> list[float]:
    """The score with more and more patches left out in `order`, from the whole image on."""
    num_patches = len(patches)
    curve = []
    for point in range(POINTS):
        visible_indices = np.sort(order[point * num_patches // POINTS :]).astype(np.int32)
        curve.append(score(served.engine.embed(0, patches[visible_indices][None], visible_indices[None])[0]))
    return curve


def scorer(served: ServedModel, plan: ExplanationPlan, explanation: Explanation, other: Floats) -> Score:
    """The score that the plan explains: a probability, or the cosine with the pooled vectors `other`."""
    head, whitening = plan.head, plan.whitening
    if head is not None and explanation.label is not None:
        index, pool = head.config.classes.index(explanation.label), POOL_INDEX[head.config.pool]
        return lambda vectors: float(head.probabilities(vectors[pool][None])[0, index])

    def cosine(vectors: Floats) -> float:
        pair = [vectors[1], other[1]] if whitening is None else [whitening.apply(v[1]) for v in (vectors, other)]
        return float(pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1]))

    return cosine


async def measure(
    served: ServedModel, settings: Settings, paths: Sequence[str], parameters: ExplainParameters
) -> dict[str, list[list[float]]]:
    """The curves of each photograph, by order of deletion."""
    curves: dict[str, list[list[float]]] = {"by shares": [], "in a random order": []}
    generator = np.random.default_rng(0)
    plan = ExplanationPlan.of(parameters, served.info, served.heads)
    count = 1 if plan.target == "class" else 2
    async with open_pipeline(served, settings, max_images=parameters.passes + 2) as pipeline:
        for number, path in enumerate(paths):
            files = [Path(name).read_bytes() for name in (path, paths[(number + 1) % len(paths)])[:count]]
            explanation = await explain_images(pipeline, ImageRequest(files), plan)
            other = np.empty((2, 0), np.float32)
            if count == 2:
                decoded = pipeline.image_decoder.decode(files[1], 1).patches
                everything = np.arange(len(decoded), dtype=np.int32)
                other = served.engine.embed(0, decoded[None], everything[None])[0]
            score = scorer(served, plan, explanation, other)
            order = np.argsort(-explanation.shares, kind="stable")
            curves["by shares"].append(deletion_curve(served, explanation.patches, order, score))
            drawn = [
                deletion_curve(served, explanation.patches, generator.permutation(order), score)
                for _ in range(RANDOM_ORDERS)
            ]
            curves["in a random order"].append(np.mean(drawn, axis=0).tolist())
    return curves


def main() -> None:
    """Prints the mean curves and the areas under them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--passes", type=int, default=128)
    parser.add_argument("--target", choices=("class", "similarity"), default="class")
    options = parser.parse_args()
    settings = load_settings(weights=options.weights, precision="fp32")
    served = build(settings.engine, lambda step: None)
    paths = sorted(find_images([options.folder]).images)
    random.Random(0).shuffle(paths)
    parameters = ExplainParameters(target=options.target, passes=options.passes, seed=0)
    curves = asyncio.run(measure(served, settings, paths[: options.images], parameters))
    areas = {name: np.mean(found, axis=1) for name, found in curves.items()}
    for name, found in curves.items():
        points = " ".join(f"{value:.3f}" for value in np.mean(found, axis=0))
        print(f"{name:18} area {areas[name].mean():.3f}, curve {points}")
    better = np.mean(areas["by shares"] < areas["in a random order"])
    print(f"{len(areas['by shares'])} photographs; the area is smaller by shares for {better:.1%} of them")


if __name__ == "__main__":
    main()
