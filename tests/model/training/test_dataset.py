from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.config import PRESETS, Preprocessing
from model.masking import visible_count
from model.training.dataset import Augmentation, Batch, ImageDataset, Loader, NoImages, random_box

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 64})


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Seven images, told apart by their red."""
    for number in range(7):
        Image.new("RGB", (80, 70), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in range(7)]


def batches(paths: list[str], step: int, count: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> list[Batch]:
    augmentation = Augmentation(CONFIG, Preprocessing(), 0.2, 0.75, "random")
    loader = Loader(ImageDataset(paths, range(len(paths))), augmentation, seed, 4, part, workers=2)
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
    for one, other in zip(whole[3:], late, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_processes_divide_a_step(paths: list[str]) -> None:
    [whole], [first], [second] = (batches(paths, 1, 1, part=part) for part in ((0, 1), (0, 2), (1, 2)))
    for all_of_it, one, other in zip(whole, first, second, strict=True):
        assert np.array_equal(all_of_it, np.concatenate([one, other]))


def test_the_seed_changes_masks(paths: list[str]) -> None:
    [one], [other] = batches(paths, 0, 1), batches(paths, 0, 1, seed=1)
    assert one.visible_indices.shape == (4, visible_count(16, 0.75))
    assert not np.array_equal(one.visible_indices, other.visible_indices)
    assert len({tuple(row) for row in one.visible_indices}) > 1


def test_a_broken_image_is_named_and_replaced_by_the_next(paths: list[str], caplog: pytest.LogCaptureFixture) -> None:
    Path(paths[2]).write_bytes(b"no image")
    photographs = ImageDataset(paths, range(7))
    assert photographs.load(2, 64)[1] == 3
    assert photographs.load(2, 64)[1] == 3
    assert list(photographs.broken) == [paths[2]]
    assert caplog.text.count(paths[2]) == 2  # in one line: as the file, and in Pillow's own words


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(NoImages, match="no images"):
        ImageDataset([])
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(NoImages, match="none of the 1 images"):
        ImageDataset([str(tmp_path / "a.png")]).load(0, 64)


@pytest.mark.parametrize("size", [(300, 200), (20, 1000), (1, 1)])
def test_boxes_lie_inside(size: tuple[int, int]) -> None:
    for seed in range(200):
        left, top, right, bottom = random_box(size, 0.2, np.random.default_rng(seed))
        assert 0 <= left < right <= size[0] + 1e-9 and 0 <= top < bottom <= size[1] + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
        if size == (300, 200):
            assert 0.2 - 1e-9 <= (right - left) * (bottom - top) / 60_000 <= 1 + 1e-9
