"""Measures how well anomalies are found, in three kinds of data, by every method, beside plain error maps.

    .venv/bin/python -m tests.benchmarks.anomalies --piped PIPED --photographs FOLDER [--weights W] [--json FILE]

(a) PIPED/KIND/{good,bad,masks}: a memory bank of 32 good images; AUROC of images on the other good and all bad ones,
    and of pixels. The masks of the PIPED data set are black where the fault is, and their names have _GT_ for _D_.
(b) 100 photographs with a square of 2 x 2 or 3 x 3 patches from another one: AUROC of all patches together; the memory
    bank is of other photographs.
(c) Crops of scikit-image's brick, grass and gravel with four kinds of faults at three strengths; the memory bank is of
    crops of the other half.

A fixed seed draws everything. The core-milliseconds are CPU time of all threads of this process for each image.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data

from model.anomaly.fit import fit_memory_bank
from model.anomaly.measure import auroc, measure_anomalies
from model.anomaly.scores import expected_pixels, reconstruction_scores
from model.arrays import Bytes, Floats, Indices
from model.checkpoints.memory_bank import MemoryBank, use_one_blas_thread
from model.engines.base import Engine
from model.engines.build import build
from model.engines.settings import EngineSettings
from model.images.open_image import open_image
from model.images.preprocess import patches_of, patchify, unpatchify
from model.masking import complementary_visible, passes_to_cover, removed_flags

SEED = 0
BANK_TOKENS = 2000
PASSES = ((0.75, None), (0.75, 8), (0.5, 8))
"""Mask ratios and passes of the reconstructions; None is the least number."""
TEXTURES = ("brick", "grass", "gravel")
CROP = 128
FAULTS = ("blot", "scratch", "missing", "shifted")
Score = Callable[[Bytes], Floats]


class Methods:
    """The methods of an engine, and the CPU time that each has taken."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.config = engine.info.config
        self.seconds: dict[str, list[float]] = {}

    def tokens(self, patches: Bytes) -> Floats:
        """Patches uint8 [N, P] -> float32 [N, D]."""
        everything = np.arange(len(patches), dtype=np.int32)[None]
        return self.engine.tokens(0, patches[None], everything)[0]

    def fit(self, images: Sequence[Bytes]) -> MemoryBank:
        tokens = np.stack([self.tokens(image) for image in images])
        return fit_memory_bank(tokens, BANK_TOKENS, self.config.image_size, SEED)

    def all(self, bank: MemoryBank) -> dict[str, Score]:
        """Every method by its name."""
        methods: dict[str, Score] = {"features": lambda patches: bank.distances(self.tokens(patches))}
        for ratio, passes in PASSES:
            count = passes or passes_to_cover(self.config.num_patches, ratio)
            masks = complementary_visible(self.config.grid, ratio, count, SEED)
            methods[f"reconstruction {ratio:g} x {count}"] = self._reconstruction(masks)
        for count in (1, 8):
            masks = complementary_visible(self.config.grid, 0.75, max(count, 2), SEED)[:count]
            methods[f"plain error 0.75 x {count}"] = self._plain_error(masks)
        return {name: self._timed(name, score) for name, score in methods.items()}

    def _reconstruction(self, masks: list[Indices]) -> Score:
        def score(patches: Bytes) -> Floats:
            pixels, _ = self._reconstruct(patches, masks)
            return reconstruction_scores(patches, expected_pixels(pixels, masks), self.engine.info.preprocessing.std)

        return score

    def _plain_error(self, masks: list[Indices]) -> Score:
        """The mean error of each patch in the passes that remove it; patches that none removes get the mean of all."""

        def score(patches: Bytes) -> Floats:
            _, errors = self._reconstruct(patches, masks)
            removed = np.stack([removed_flags(mask, len(patches)) for mask in masks])
            counts = removed.sum(axis=0)
            totals = (np.stack(list(errors)) * removed).sum(axis=0)
            scores = totals / np.maximum(counts, 1)
            return np.where(counts > 0, scores, scores[counts > 0].mean()).astype(np.float32)

        return score

    def _reconstruct(self, patches: Bytes, masks: list[Indices]) -> tuple[Bytes, Floats]:
        batch = self.engine.info.preferred_batch
        parts = []
        for start in range(0, len(masks), batch):
            visible = np.stack(masks[start : start + batch])
            parts.append(self.engine.reconstruct(0, np.repeat(patches[None], len(visible), axis=0), visible))
        pixels, errors = zip(*parts, strict=True)
        return np.concatenate(pixels), np.concatenate(errors)

    def _timed(self, name: str, score: Score) -> Score:
        def timed(patches: Bytes) -> Floats:
            start = time.process_time()
            scores = score(patches)
            self.seconds.setdefault(name, []).append(time.process_time() - start)
            return scores

        return timed


def read(engine: Engine, content: bytes) -> Bytes:
    return patches_of(open_image(content, 10**8), engine.info.config, engine.info.preprocessing)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def squares(engine: Engine, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Faulty pixels of square images -> of the model's squares."""
    side = engine.info.config.image_size
    resized = [
        Image.fromarray(mask.astype(np.uint8) * 255).resize((side, side), Image.Resampling.BOX) for mask in masks
    ]
    return [np.asarray(image) > 127 for image in resized]


def piped(methods: Methods, folder: Path) -> Iterator[tuple[str, str, float, float]]:
    """Kind, method, AUROC of images and of pixels; then the bank's by its size, and the threshold's false alarms."""
    engine = methods.engine
    for kind in sorted(path for path in folder.iterdir() if path.is_dir()):
        good = [read(engine, path.read_bytes()) for path in sorted((kind / "good").iterdir())]
        names = sorted((kind / "bad").iterdir())
        bad = [read(engine, path.read_bytes()) for path in names]
        masks = {numbers(path): path for path in (kind / "masks").iterdir()}
        faulty = squares(engine, [np.asarray(Image.open(masks[numbers(path)]).convert("L")) < 128 for path in names])
        tokens_of_good, tokens_of_bad = ([methods.tokens(image) for image in images] for images in (good, bad))
        normal = np.stack(tokens_of_good[:32])
        bank = fit_memory_bank(normal, BANK_TOKENS, methods.config.image_size, SEED)
        for name, score in methods.all(bank).items():
            result = measure_anomalies(list(map(score, good[32:])), list(map(score, bad)), faulty, None)
            yield kind.name, name, result.image_auroc, result.pixel_auroc or 0
        for size in (200, 500, 1000, 10**6):
            other = fit_memory_bank(normal, size, methods.config.image_size, SEED)
            scores = (list(map(other.distances, tokens)) for tokens in (tokens_of_good[32:], tokens_of_bad))
            result = measure_anomalies(*scores, faulty, None)
            yield kind.name, f"features, {size} tokens", result.image_auroc, result.pixel_auroc or 0
        for share in (0.01, 0.05, 0.1):
            threshold = bank.threshold(share)
            flagged = [
                np.mean([bank.distances(tokens).max() > threshold for tokens in images])
                for images in (tokens_of_good[32:], tokens_of_bad)
            ]
            yield kind.name, f"share of good and of bad flagged at {share}", float(flagged[0]), float(flagged[1])


def numbers(path: Path) -> tuple[int, ...]:
    """The last two numbers in the name of an image or its mask, such as 10_3."""
    return tuple(map(int, re.findall(r"\d+", path.stem)[-2:]))


def photographs(methods: Methods, folder: Path) -> Iterator[tuple[str, float]]:
    """Method, AUROC of the patches of all photographs together, and the mean of that of each photograph."""
    engine, grid, patch = methods.engine, methods.config.grid, methods.config.patch_size
    side = methods.config.image_size
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(paths))
    images, inside = [], []
    for number in range(100):
        image, other = (unpatchify(read(engine, paths[order[n]].read_bytes())) for n in (number, 100 + number))
        cells = int(generator.choice([2, 3]))
        row, column = patch * generator.integers(0, grid - cells + 1, 2)
        from_row, from_column = generator.integers(0, side - patch * cells + 1, 2)
        pasted, flags = image.copy(), np.zeros((side, side), bool)
        target = np.s_[row : row + patch * cells, column : column + patch * cells]
        pasted[target] = other[from_row : from_row + patch * cells, from_column : from_column + patch * cells]
        flags[target] = True
        images.append(patchify(pasted, patch))
        inside.append(patchify(flags[..., None], patch).all(axis=1))
    bank = methods.fit([read(engine, paths[number].read_bytes()) for number in order[200:500]])
    for name, score in methods.all(bank).items():
        scores = np.stack([score(image) for image in images])
        yield name, auroc(scores, np.stack(inside))


def crop(texture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random square of CROP pixels a side."""
    row, column = (generator.integers(0, length - CROP + 1) for length in texture.shape)
    return texture[row : row + CROP, column : column + CROP]


def faulty_crop(crop: np.ndarray, fault: str, strength: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A grey crop [S, S], 0 to 255, with a fault of strength 0, 1 or 2, and the fault's pixels [S, S]."""
    side = len(crop)
    rows, columns = np.mgrid[:side, :side].astype(float)
    centre, angle = generator.uniform(0.2 * side, 0.8 * side, 2), generator.uniform(0, np.pi)
    along = (rows - centre[0]) * np.cos(angle) + (columns - centre[1]) * np.sin(angle)
    across = (columns - centre[1]) * np.cos(angle) - (rows - centre[0]) * np.sin(angle)
    tone = generator.choice([20.0, 235.0])
    if fault == "blot":
        radii = generator.uniform(4, 9, 2)
        inside = (along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1
        share = gaussian_filter(inside.astype(float), 1) * (0.25, 0.5, 0.9)[strength]
        return crop * (1 - share) + tone * share, inside
    if fault == "scratch":
        inside = (np.abs(along) < (0.7, 1.0, 1.5)[strength]) & (np.abs(across) < generator.uniform(15, 40))
        share = gaussian_filter(inside.astype(float), 0.5) * (0.4, 0.6, 0.9)[strength]
        return crop * (1 - share) + tone * share, inside
    half = generator.uniform(7, 12)
    inside = (np.abs(along) < half) & (np.abs(across) < half)
    share = gaussian_filter(inside.astype(float), 0.7)
    if fault == "missing":
        share *= (0.35, 0.65, 1)[strength]
        return crop * (1 - share) + crop[inside].mean() * share, inside
    direction = generator.uniform(0, 2 * np.pi)
    steps = np.round((3, 6, 12)[strength] * np.array([np.sin(direction), np.cos(direction)])).astype(int)
    return crop * (1 - share) + np.roll(crop, steps, (0, 1)) * share, inside


def faulty_textures(methods: Methods) -> Iterator[tuple[str, str, int, str, float, float]]:
    """Texture, fault, strength, method, AUROC of images and of pixels."""
    engine = methods.engine
    for texture in TEXTURES:
        generator = np.random.default_rng(SEED)
        whole = getattr(data, texture)().astype(float)
        left, right = np.hsplit(whole, 2)
        normal = [read(engine, png(crop(left, generator))) for _ in range(32)]
        good = [read(engine, png(crop(right, generator))) for _ in range(16)]
        bank = methods.fit(normal)
        scores_of_good = {name: list(map(score, good)) for name, score in methods.all(bank).items()}
        for fault in FAULTS:
            for strength in range(3):
                crops = [faulty_crop(crop(right, generator), fault, strength, generator) for _ in range(8)]
                bad = [read(engine, png(image)) for image, _ in crops]
                faulty = squares(engine, [inside for _, inside in crops])
                for name, score in methods.all(bank).items():
                    result = measure_anomalies(scores_of_good[name], list(map(score, bad)), faulty, None)
                    yield texture, fault, strength, name, result.image_auroc, result.pixel_auroc or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--piped", type=Path, help="folder of (a)")
    parser.add_argument("--photographs", type=Path, help="folder of (b)")
    parser.add_argument("--weights", help="by default the packaged ones")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    use_one_blas_thread()  # as the service does
    settings = EngineSettings(weights=options.weights, precision="fp32", lanes=1)
    methods = Methods(build(settings, lambda step: None).engine)
    print(methods.engine.info.model_id, flush=True)
    figures: dict[str, object] = {}
    if options.piped:
        rows = list(piped(methods, options.piped))
        figures["piped"] = rows
        print("(a) AUROC of images and pixels, mean over the kinds, and the least")
        for name in dict.fromkeys(row[1] for row in rows):
            pairs = np.array([row[2:] for row in rows if row[1] == name])
            print(f"    {name:45} {pairs.mean(axis=0).round(3)} {pairs.min(axis=0).round(3)}", flush=True)
    if options.photographs:
        figures["photographs"] = pasted = list(photographs(methods, options.photographs))
        print("(b) AUROC of patches")
        for name, auroc in pasted:
            print(f"    {name:45} {auroc:.3f}", flush=True)
    figures["textures"] = found = list(faulty_textures(methods))
    for place, title in ((4, "images"), (5, "pixels")):
        print(f"(c) AUROC of {title}, mean over the textures at strengths 1, 2, 3; and each texture, mean over faults")
        for name in dict.fromkeys(row[3] for row in found):
            print(f"    {name}")
            for fault in FAULTS:
                by_strength = [
                    np.mean([row[place] for row in found if row[1:4] == (fault, strength, name)])
                    for strength in range(3)
                ]
                print(f"        {fault:10} {np.round(by_strength, 2)}", flush=True)
            by_texture = {
                texture: np.mean([row[place] for row in found if (row[0], row[3]) == (texture, name)])
                for texture in TEXTURES
            }
            print("        " + ", ".join(f"{texture} {auroc:.2f}" for texture, auroc in by_texture.items()))
    print("core-milliseconds per image, median")
    for name, seconds in methods.seconds.items():
        print(f"    {name:45} {1000 * np.median(seconds):.1f}")
    figures["core_ms"] = {name: 1000 * float(np.median(seconds)) for name, seconds in methods.seconds.items()}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
