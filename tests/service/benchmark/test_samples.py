"""Images to measure with."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.benchmark.samples import SAVE_OPTIONS, generate_sample, read_sample


@pytest.mark.parametrize("image_format", SAVE_OPTIONS)
def test_generated_images_are_what_they_are_called_and_compress_as_photographs_do(image_format: str) -> None:
    sample = generate_sample(image_format, 500, 334, 3)
    assert sample.name == f"{image_format} 500 x 334"
    images = [Image.open(io.BytesIO(file)) for file in sample.files]
    assert {(image.format, image.size, image.mode) for image in images} == {(image_format, (500, 334), "RGB")}
    assert len(set(sample.files)) == 3 and sample.files == generate_sample(image_format, 500, 334, 3).files
    # Bits per pixel of scikit-image's photographs: JPEG 1.2 to 1.9, PNG 9 to 15, WebP 0.7 to 1.3.
    low, high = {"JPEG": (1.2, 2.2), "PNG": (9, 15), "WEBP": (0.7, 1.5)}[image_format]
    assert low < 8 * sample.mean_bytes / (500 * 334) < high


def test_a_folder_of_the_users_own_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    Image.fromarray(np.tile(pixels, (5, 5, 1))).save(tmp_path / "large.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    sample = read_sample(tmp_path, 10_000)
    assert sample.files == ((tmp_path / "b.png").read_bytes(), (tmp_path / "deep" / "a.png").read_bytes())
    assert sample.mean_bytes == pytest.approx((tmp_path / "b.png").stat().st_size)
    with pytest.raises(ValueError, match="holds no image"):
        read_sample(tmp_path, 10)
