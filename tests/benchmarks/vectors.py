"""Measures short vectors, types of numbers, and vectors of regions: the tables of model/weights/README.md.

    .venv/bin/python -m tests.benchmarks.vectors TRAIN TEST                      # the packaged model
    .venv/bin/python -m tests.benchmarks.vectors TRAIN TEST --weights FILE --limit 500

TRAIN and TEST are folders with one folder per class. Every figure is the accuracy of a vote of the 20 nearest
neighbours of a test photograph among the training photographs, by cosine (for signs, by Hamming distance). Vectors are
made as POST /embed makes them, with the whitening in the weights. The region is the middle of the image, 8 x 8 patches
of 14 x 14; the crop is a photograph of that part alone, as a client would cut it out of the file.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from model.arrays import Bytes, Floats
from model.checkpoints.heads import POOL_INDEX
from model.engines.base import Engine, ServedModel
from model.evaluation.neighbours import Labels, predict
from model.images.folders import LabelledImages, labelled_images
from service.cli.local_pipeline import build_engine
from service.inference.dtypes import convert_vectors
from service.inference.embedding import EmbeddingPlan
from service.inference.image_decoder import ImageDecoder
from service.parameters import DType, EmbedParameters
from service.settings import load_settings

NEIGHBOURS = 20
DIMENSIONS = (None, 128, 64, 32)
KINDS = ("whole", "region", "crop")
DTYPES: tuple[DType, ...] = get_args(DType)


@dataclass(frozen=True)
class Embedded:
    """The photographs of a folder as the engine's mean vectors, one array for each kind."""

    labels: Labels
    vectors: dict[str, Floats]
    """By kind, float32 [n, D]."""


def middle_of(grid: int) -> tuple[int, int]:
    """The first row of patches in the middle part, and the row after its last."""
    margin = round(grid * 3 / 14)
    return margin, grid - margin


def cut_out(path: Path, grid: int) -> bytes:
    """The part of a photograph that the middle patches show, as a file; the model sees the central square."""
    start, end = middle_of(grid)
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    first, last = side * start / grid, side * end / grid
    out = io.BytesIO()
    image.crop((round(left + first), round(top + first), round(left + last), round(top + last))).save(out, "BMP")
    return out.getvalue()


def embed(engine: Engine, images: LabelledImages, numbers: Sequence[int], max_pixels: int) -> Embedded:
    """The mean vectors of whole photographs, of their middle, and of crops of it."""
    config = engine.info.config
    decoder = ImageDecoder(config, engine.info.preprocessing, max_pixels)
    rows = range(*middle_of(config.grid))
    middle = np.array([row * config.grid + column for row in rows for column in rows], dtype=np.int32)
    every = np.arange(config.num_patches, dtype=np.int32)
    lanes: SimpleQueue[int] = SimpleQueue()
    for lane in range(engine.info.lanes):
        lanes.put(lane)

    def run(patches: Iterable[Bytes], visible: NDArray[np.int32]) -> Floats:
        batch = np.ascontiguousarray(np.stack(list(patches))[:, visible])
        lane = lanes.get()
        try:
            vectors = engine.embed(lane, batch, np.repeat(visible[None], len(batch), axis=0))
        finally:
            lanes.put(lane)
        mean: Floats = vectors[:, POOL_INDEX["mean"]]
        return mean

    def embed_batch(batch: Sequence[int]) -> list[Floats]:
        paths = [Path(images.paths[number]) for number in batch]
        whole = [decoder.decode_when_free(path.read_bytes(), 0).patches for path in paths]
        crops = [decoder.decode_when_free(cut_out(path, config.grid), 0).patches for path in paths]
        return [run(whole, every), run(whole, middle), run(crops, every)]

    size = engine.info.preferred_batch
    batches = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    with ThreadPoolExecutor(2 * engine.info.lanes) as pool:
        parts = list(pool.map(embed_batch, batches))
    vectors = {kind: np.concatenate([part[k] for part in parts]) for k, kind in enumerate(KINDS)}
    return Embedded(np.array(images.labels)[list(numbers)], vectors)


def finish(served: ServedModel, parameters: EmbedParameters, vectors: Floats) -> Floats:
    """What a client has of `vectors` after POST /embed with these parameters, as numbers to compare by cosine."""
    plan = EmbeddingPlan.of(parameters, served.info, served.heads)
    finished = plan.finish(list(vectors))
    numbers, scales = convert_vectors(finished, parameters.dtype)
    if parameters.dtype == "binary":  # the cosine of vectors of 1 and -1 falls as their Hamming distance grows
        return np.unpackbits(numbers, axis=1, count=finished.shape[1]).astype(np.float32) * 2 - 1
    return numbers.astype(np.float32) if scales is None else (numbers * scales[:, None]).astype(np.float32)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in Markdown, and an empty line."""
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def measure(served: ServedModel, train: Embedded, test: Embedded) -> None:
    """Prints the tables."""

    def accuracy(parameters: EmbedParameters, index: str = "whole", query: str = "whole") -> str:
        known, asked = (
            finish(served, parameters, part.vectors[kind]) for part, kind in ((train, index), (test, query))
        )
        return f"{np.mean(predict(known, train.labels, asked, NEIGHBOURS) == test.labels):.3f}"

    def parameters_of(dimensions: int | None, dtype: DType) -> EmbedParameters:
        return EmbedParameters(whiten=True, dimensions=dimensions, dtype=dtype)

    axes = served.heads.whitening["mean"].matrix.shape[1]
    rows = []
    for dimensions in DIMENSIONS:
        count = dimensions or axes
        share = served.heads.whitening["mean"].explained_variance[count - 1]
        figures = [accuracy(parameters_of(dimensions, dtype)) for dtype in DTYPES]
        rows.append([f"{count}{'' if dimensions else ' (all)'}", f"{share:.1%}", *figures])
    print_table(["dimensions", "variance", *DTYPES], rows)

    whitened = EmbedParameters(whiten=True)
    found = {kind: find_own(served, whitened, test, kind) for kind in KINDS[1:]}
    print_table(
        ["test photographs as", "index of whole photographs", "index of the same kind", "own photograph found first"],
        [
            [kind, accuracy(whitened, "whole", kind), accuracy(whitened, kind, kind), found.get(kind, "")]
            for kind in KINDS
        ],
    )


def find_own(served: ServedModel, parameters: EmbedParameters, test: Embedded, kind: str) -> str:
    """Share of the test photographs that their own region or crop finds first among all whole test photographs."""
    whole, parts = (finish(served, parameters, test.vectors[name]) for name in ("whole", kind))
    numbers = np.arange(len(whole))
    return f"{np.mean(predict(whole, numbers, parts, 1) == numbers):.3f}"


def choose(count: int, limit: int | None) -> list[int]:
    """The photographs to use: all, or as many as the limit allows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, limit or count)).round().astype(int)).tolist()


def main() -> None:
    """Reads the arguments, embeds both folders, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--weights", help="as for mae serve; by default the packaged weights")
    parser.add_argument("--limit", type=int, help="photographs of each folder")
    arguments = parser.parse_args()
    settings = load_settings(precision="fp32", **({"weights": arguments.weights} if arguments.weights else {}))
    served = build_engine(settings)
    train = labelled_images(arguments.train)
    test = labelled_images(arguments.test, train.classes)
    embedded = [
        embed(served.engine, images, choose(len(images.paths), arguments.limit), settings.max_pixels)
        for images in (train, test)
    ]
    counts = ", ".join(
        f"{len(part.labels)} {name}" for part, name in zip(embedded, ("to search", "measured"), strict=True)
    )
    print(f"{served.info.model_id}, {served.info.backend} {served.info.computes}: {counts}\n")
    measure(served, *embedded)


if __name__ == "__main__":
    main()
