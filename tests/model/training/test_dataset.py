from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest, ks_2samp

from model.config import PRESETS, Preprocessing
from model.images.formats.base import StoredImage
from model.images.open_image import open_image
from model.images.preprocess import DecodedPixels, load_upright, patches_of, patchify, resize_and_crop, unpatchify
from model.masking import visible_count
from model.training.dataset import Augmentation, Batch, DataLoader, ImageDataset, NoImages, draw_crop
from tests.support.image_files import jpeg_file, noise, png_file

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 64})
decode = partial(load_upright, least_side=64)


def augmentation(crop_scale: float = 0.2) -> Augmentation:
    return Augmentation(CONFIG, Preprocessing(), crop_scale, 0.75, "random")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Seven images, told apart by their red."""
    for number in range(7):
        Image.new("RGB", (80, 70), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(7)]


def batches(paths: list[str], step: int, count: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> list[Batch]:
    dataset = ImageDataset(paths, range(len(paths)))
    loader = DataLoader(dataset, augmentation(), seed, 4, rank=rank, world_size=world_size, threads=2)
    stream = loader.batches(step)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        loader.close()


def test_every_image_comes_once_an_epoch(paths: list[str]) -> None:
    labels = np.concatenate([batch.labels for batch in batches(paths, 0, 7)])
    for epoch in labels.reshape(4, 7):
        assert sorted(epoch) == list(range(7))
    assert len({tuple(epoch) for epoch in labels.reshape(4, 7)}) > 1


def test_labels_go_with_their_images(paths: list[str]) -> None:
    for patches, _, labels in batches(paths, 0, 3):
        assert np.array_equal(patches[:, 0, 0], 30 * labels)


def test_a_stream_begun_in_the_middle_is_the_same(paths: list[str]) -> None:
    whole, late = batches(paths, 0, 5), batches(paths, 3, 2)
    for batch, other in zip(whole[3:], late, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


def test_processes_divide_a_step(paths: list[str]) -> None:
    [whole] = batches(paths, 1, 1)
    [first], [second] = (batches(paths, 1, 1, rank=rank, world_size=2) for rank in (0, 1))
    for array, part, other in zip(whole, first, second, strict=True):
        assert np.array_equal(array, np.concatenate([part, other]))


def test_the_seed_changes_masks(paths: list[str]) -> None:
    [batch], [other] = batches(paths, 0, 1), batches(paths, 0, 1, seed=1)
    assert batch.visible_indices.shape == (4, visible_count(16, 0.75))
    assert not np.array_equal(batch.visible_indices, other.visible_indices)
    assert len({tuple(visible) for visible in batch.visible_indices}) > 1


def test_a_broken_image_is_named_and_replaced_by_the_next(paths: list[str], caplog: pytest.LogCaptureFixture) -> None:
    Path(paths[2]).write_bytes(b"no image")
    dataset = ImageDataset(paths, range(7))
    assert dataset.load(2, decode)[1] == 3
    assert dataset.load(2, decode)[1] == 3
    assert list(dataset.broken) == [paths[2]]
    assert caplog.text.count(paths[2]) == 1


def test_images_are_read_as_the_service_reads_them(tmp_path: Path) -> None:
    """Damaged pixels are no black picture, a JPEG may lack its end, and a limit holds for what is decoded."""
    whole = jpeg_file(Image.fromarray(noise(8, 8)).resize((1000, 900), Image.Resampling.BICUBIC))
    damaged = bytearray(png_file(noise(500, 400)))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 64] = b"\xff" * 64
    files = {"a.png": bytes(damaged), "b.png": png_file(noise(500, 401)), "c.jpg": whole[:-2], "d.jpg": whole}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    dataset = ImageDataset([str(tmp_path / name) for name in files], range(4), max_pixels=200_000)
    patches, label = dataset.load(0, decode)
    assert label == 2 and list(dataset.broken) == dataset.paths[:2]
    assert "500 x 401 pixels; the limit is 200000" in dataset.broken[dataset.paths[1]]
    assert np.array_equal(patches.image, dataset.load(3, decode)[0].image)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(NoImages, match="no images"):
        ImageDataset([])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(NoImages, match="none of the 1 images"):
        ImageDataset([str(tmp_path / "a.png")]).load(0, decode)


def test_a_lack_of_memory_is_not_the_images_fault(paths: list[str]) -> None:
    def fail(image: StoredImage) -> None:
        raise MemoryError

    dataset = ImageDataset(paths)
    with pytest.raises(MemoryError):
        dataset.load(0, fail)
    assert dataset.broken == {}


@pytest.mark.parametrize("size", [(300, 200), (20, 1000), (1, 1)])
def test_crops_lie_inside(size: tuple[int, int]) -> None:
    for seed in range(200):
        left, top, right, bottom = draw_crop(size, 0.2, np.random.default_rng(seed))
        assert 0 <= left < right <= size[0] + 1e-9 and 0 <= top < bottom <= size[1] + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        if size == (300, 200):
            assert 0.2 - 1e-9 <= (right - left) * (bottom - top) / 60_000 <= 1 + 1e-9


def torchvision_crop(width: int, height: int, min_share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box as torchvision documents RandomResizedCrop: whole pixels, up to ten tries, else the centre."""
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        share, log_aspect = rng.uniform(min_share, 1), rng.uniform(math.log(low), math.log(high))
        root, stretch = math.sqrt(share * width * height), math.exp(log_aspect / 2)
        w, h = round(root * stretch), round(root / stretch)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w, endpoint=True)), int(rng.integers(height - h, endpoint=True))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < low:
        h = round(width / low)
    elif width / height > high:
        w = round(height * high)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@pytest.mark.parametrize("size", [(4000, 3000), (2000, 2500), (3000, 3000)])
@pytest.mark.parametrize("min_share", [0.08, 0.2, 0.7])
def test_crops_have_the_distribution_of_torchvision(size: tuple[int, int], min_share: float) -> None:
    """Area, aspect and both positions; of an image so large that whole pixels make no difference."""
    rng, other_rng = np.random.default_rng(1), np.random.default_rng(2)
    ours = np.array([draw_crop(size, min_share, rng) for _ in range(3000)])
    theirs = np.array([torchvision_crop(*size, min_share, other_rng) for _ in range(3000)], dtype=float)

    def figures(boxes: np.ndarray) -> dict[str, np.ndarray]:
        left, top, right, bottom = boxes.T
        return {
            "area": (right - left) * (bottom - top),
            "aspect": (right - left) / (bottom - top),
            "left": left,
            "top": top,
        }

    for name, values in figures(ours).items():
        assert ks_2samp(values, figures(theirs)[name]).pvalue > 0.005, name


@pytest.mark.parametrize("size", [(1000, 20), (20, 1000), (999, 333)])
def test_of_an_oblong_image_the_centre_is_taken_as_torchvision_does(size: tuple[int, int]) -> None:
    ours = draw_crop(size, 0.9, np.random.default_rng(0))
    assert ours == pytest.approx(torchvision_crop(*size, 0.9, np.random.default_rng(0)), abs=1)


def test_a_crop_of_all_of_an_image_is_the_square_of_evaluation_or_its_mirror_image(
    photographs: Mapping[str, Image.Image],
) -> None:
    """Half of them are flipped."""
    image = photographs["chelsea"].convert("RGB").crop((100, 0, 400, 300))
    pixels = DecodedPixels.whole(image)
    square = np.asarray(resize_and_crop(pixels, CONFIG, Preprocessing()))
    plain, flipped = patchify(square, 16), patchify(square[:, ::-1], 16)
    crops = [augmentation(crop_scale=1).crop(pixels, np.random.default_rng(seed)) for seed in range(200)]
    flips = [np.array_equal(crop, flipped) for crop in crops]
    assert all(np.array_equal(crop, flipped if flip else plain) for crop, flip in zip(crops, flips, strict=True))
    assert binomtest(sum(flips), len(flips)).pvalue > 0.01


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_the_pixels_of_a_crop_are_those_of_its_box(name: str) -> None:
    """On a ramp of red across and green down, a pixel's colour is its place."""
    red, green = np.meshgrid(np.arange(250), np.arange(180))
    image = Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))
    crop = Augmentation(CONFIG, Preprocessing(filter=name), 0.2, 0.75, "random").crop  # type: ignore[arg-type]
    flips = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        left, top, right, bottom = draw_crop(image.size, 0.2, rng)
        pixels = unpatchify(crop(DecodedPixels.whole(image), np.random.default_rng(seed))).astype(float)
        centres = (np.arange(64) + 0.5) / 64
        x, y = left + centres * (right - left) - 0.5, top + centres * (bottom - top) - 0.5
        if rng.random() < 0.5:
            x, flips = x[::-1], flips + 1
        inside = slice(3, -3)  # at the border of the image a filter has no more ramp to read
        assert np.abs(pixels[inside, inside, 0] - x[None, inside]).max() < 1
        assert np.abs(pixels[inside, inside, 1] - y[inside, None]).max() < 1
    assert 0 < flips < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_read_at_a_part_of_its_size_is_cropped_where_its_picture_is(orientation: int) -> None:
    """Its last column and row are filled to an eighth: to count them as whole ones would shift the crop."""
    red, green = np.meshgrid(np.linspace(0, 255, 1025), np.linspace(0, 255, 1025))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8)).save(
        out := io.BytesIO(), "JPEG", quality=95, subsampling=0, exif=exif
    )
    pixels = load_upright(open_image(out.getvalue()), 64)
    assert pixels.image.size == (129, 129)
    assert (pixels.box[2] - pixels.box[0], pixels.box[3] - pixels.box[1]) == (1025 / 8, 1025 / 8)
    rng = np.random.default_rng(4)
    square = unpatchify(augmentation(crop_scale=1).crop(pixels, rng)).astype(float)
    evaluated = unpatchify(patches_of(open_image(out.getvalue()), CONFIG, Preprocessing())).astype(float)
    mirrored = evaluated[:, ::-1]
    assert min(np.abs(square - evaluated).max(), np.abs(square - mirrored).max()) == 0
