"""Training from memory beside training from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from model.config import PRESETS, Preprocessing
from model.images.preprocess import unpatchify
from model.masking import Strategy
from model.training.config import Recipe
from model.training.dataset import Augmentation, Batch, DataLoader, ImageDataset, NoImages, draw_crop
from model.training.distributed import DistributedContext
from model.training.memory_images import MemoryImages, MemoryPlan
from model.training.memory_loader import DeviceBatch, MemoryLoader
from model.training.run import RunError

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 64})
ALONE = DistributedContext(0, 1, 0, 1, torch.device("cpu"))


def augmentation(mask_ratio: float = 0.75, strategy: Strategy = "random") -> Augmentation:
    return Augmentation(CONFIG, Preprocessing(), 0.2, mask_ratio, strategy)


def into_memory(dataset: ImageDataset, **options: float) -> MemoryImages:
    return MemoryPlan.of(dataset, augmentation(), Recipe(in_memory=True, **options), ALONE).load(dataset)


def from_memory(
    images: MemoryImages, step: int, count: int, how: Augmentation, seed: int = 0, rank: int = 0, world_size: int = 1
) -> list[DeviceBatch]:
    loader = MemoryLoader(images, how, seed, 4, rank=rank, world_size=world_size)
    stream = loader.batches(step)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        loader.close()


def from_files(dataset: ImageDataset, step: int, count: int, how: Augmentation, seed: int = 0) -> list[Batch]:
    loader = DataLoader(dataset, how, seed, 4, rank=0, world_size=1, threads=1)
    stream = loader.batches(step)
    try:
        return [next(stream) for _ in range(count)]
    finally:
        loader.close()


@pytest.fixture(scope="module")
def paths(photographs: Mapping[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve small photographs of several shapes, and a broken file in their midst."""
    folder = tmp_path_factory.mktemp("photographs")
    sizes = [(64, 64), (100, 60), (80, 64), *([(60, 90)] if int(PIL.__version__.partition(".")[0]) >= 13 else [])]
    for number, (name, size) in enumerate((name, size) for name in photographs for size in sizes):
        photographs[name].convert("RGB").resize(size).save(folder / f"{number:02d}.png")
    (folder / "05.png").write_bytes(b"no image")
    return sorted(map(str, folder.iterdir()))


@pytest.mark.parametrize(
    "how", [augmentation(), augmentation(0.6, "block"), augmentation(0.75, "grid"), augmentation(0)]
)
@pytest.mark.parametrize("seed", [0, 2**33])
def test_samples_are_those_from_files(paths: list[str], how: Augmentation, seed: int) -> None:
    dataset = ImageDataset(paths, range(len(paths)))
    for batch, other in zip(
        from_memory(into_memory(dataset), 2, 5, how, seed), from_files(dataset, 2, 5, how, seed), strict=True
    ):
        assert np.array_equal(batch.labels, other.labels)
        assert batch.visible_indices.dtype == torch.int32
        assert np.array_equal(batch.visible_indices, other.visible_indices)
        assert batch.patches.dtype == torch.uint8
        difference = np.abs(batch.patches.numpy().astype(int) - other.patches)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_the_host_never_reads_from_the_device(paths: list[str]) -> None:
    """Tensors of the device `meta` have no data: whoever needs a value gets an error."""
    images = into_memory(ImageDataset(paths))
    [batch] = from_memory(images._replace(pixels=images.pixels.to("meta")), 0, 1, augmentation())
    assert {tensor.device.type for tensor in batch} == {"meta"}
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in batch] == [
        ((4, 16, 768), torch.uint8),
        ((4, 4), torch.int32),
        ((4,), torch.int64),
    ]


def test_a_stream_begun_in_the_middle_is_the_same_to_the_bit(paths: list[str]) -> None:
    images = into_memory(ImageDataset(paths))
    whole, late = from_memory(images, 0, 5, augmentation()), from_memory(images, 3, 2, augmentation())
    for batch, other in zip(whole[3:], late, strict=True):
        assert all(tensor.equal(same) for tensor, same in zip(batch, other, strict=True))


def test_processes_divide_a_step(paths: list[str]) -> None:
    images = into_memory(ImageDataset(paths, range(len(paths))))
    [whole] = from_memory(images, 1, 1, augmentation())
    [first], [second] = (from_memory(images, 1, 1, augmentation(), rank=rank, world_size=2) for rank in (0, 1))
    assert whole.labels.equal(torch.cat([first.labels, second.labels]))
    assert whole.visible_indices.equal(torch.cat([first.visible_indices, second.visible_indices]))
    difference = whole.patches.int() - torch.cat([first.patches, second.patches]).int()
    assert difference.abs().max() <= 1


def test_larger_images_are_scaled_down_and_cropped_in_the_same_places(tmp_path: Path) -> None:
    """On a ramp of red across and green down, a pixel's colour is its place. The JPEG is turned by EXIF."""
    red, green = np.meshgrid(np.linspace(0, 255, 530), np.linspace(0, 255, 400))
    ramp = Image.fromarray(np.stack([red, green, 0 * red], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
    dataset = ImageDataset([str(tmp_path / "a.jpg")])
    images = into_memory(dataset, memory_side=100)
    assert images.sizes.tolist() == [[132, 100]] and images.pixels.shape == (13200, 3)
    for batch, other in zip(
        from_memory(images, 0, 3, augmentation()), from_files(dataset, 0, 3, augmentation()), strict=True
    ):
        assert np.array_equal(batch.visible_indices, other.visible_indices)
        for patches, others in zip(batch.patches.numpy(), other.patches, strict=True):
            difference = np.abs(unpatchify(patches).astype(int) - unpatchify(others))
            assert difference[3:-3, 3:-3].max() <= 4


def test_images_that_do_not_fit_are_refused(paths: list[str]) -> None:
    with pytest.raises(RunError, match=r"images with a short side of 64 need 0\.2\d* MB, and --memory-mb allows 0\.1:"):
        into_memory(ImageDataset(paths), memory_mb=0.1)
    assert into_memory(ImageDataset(paths), memory_mb=0.1, memory_side=16).pixels.numel() < 1e5


def test_a_broken_image_is_replaced_by_the_next(paths: list[str], tmp_path: Path) -> None:
    """Its header may be whole, so that its damage shows only later."""
    torn = tmp_path / "torn.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(torn)
    torn.write_bytes(torn.read_bytes()[:3000])
    dataset = ImageDataset([paths[0], str(torn), paths[1], str(torn.with_name("none.png"))], [0, 1, 2, 3])
    images = into_memory(dataset)
    assert images.labels.tolist() == [0, 2, 2, 0]
    assert images.first_pixels.tolist() == [0, 64 * 64, 64 * 64, 0]
    assert list(dataset.broken) == [str(torn.with_name("none.png")), str(torn)]
    with pytest.raises(NoImages, match="none of the 1 images"):
        into_memory(ImageDataset([str(torn)]))


def test_a_filter_without_antialiasing_is_refused(paths: list[str]) -> None:
    nearest = Augmentation(CONFIG, Preprocessing(filter="nearest"), 0.2, 0.75, "random")
    with pytest.raises(RunError, match="nearest"):
        MemoryPlan.of(ImageDataset(paths), nearest, Recipe(in_memory=True), ALONE)


def test_crops_from_files_are_pillows_as_documented(paths: list[str]) -> None:
    """The default path, written out: each sample is a function of the seed and of its number."""
    dataset = ImageDataset(paths[:4], range(4))
    [batch] = from_files(dataset, 3, 1, augmentation(), seed=5)
    order = np.random.default_rng((5, 0, 3)).permutation(4)
    for place, number in enumerate(range(12, 16)):
        rng = np.random.default_rng((5, 1, number))
        with Image.open(paths[order[place]]) as image:
            box = draw_crop(image.size, 0.2, rng)
            square = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, box=box))
        square = square[:, ::-1] if rng.random() < 0.5 else square
        keys = np.random.PCG64(int(rng.integers(2**63))).random_raw(16)
        assert np.array_equal(unpatchify(batch.patches[place]), square)
        assert batch.visible_indices[place].tolist() == sorted(np.argsort(keys, kind="stable")[:4].tolist())
