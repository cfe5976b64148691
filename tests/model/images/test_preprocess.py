"""Opening images and cutting them into patches; the service's decoder has tests of its own for every format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.config import PRESETS, Preprocessing
from model.images.errors import ImageError, PixelLimitError, UnknownFormatError
from model.images.open_image import open_image
from model.images.preprocess import (
    DecodedPixels,
    load_upright,
    patches_of,
    patchify,
    resize_and_crop,
    unpatchify,
)
from model.nn import vit

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 64})


def encode(image: Image.Image, form: str = "PNG") -> bytes:
    image.save(out := io.BytesIO(), form)
    return out.getvalue()


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_patches_are_those_of_the_model() -> None:
    pixels = np.asarray(noise(64, 64))
    patches = patchify(pixels, 16)
    assert np.array_equal(patches, vit.patchify(torch.from_numpy(pixels.copy())[None], 16)[0].numpy())
    assert np.array_equal(unpatchify(patches), pixels)
    assert np.array_equal(patches[5].reshape(16, 16, 3), pixels[16:32, 16:32]), "row-major"


@pytest.mark.parametrize("resize", ["short", "squash"])
def test_an_image_becomes_the_patches_of_its_square(resize: str) -> None:
    preprocessing = Preprocessing(resize=resize)  # type: ignore[arg-type]
    image = noise(100, 80)
    patches = patches_of(open_image(encode(image)), CONFIG, preprocessing)
    assert (patches.shape, patches.dtype) == ((16, 768), np.uint8)
    square = resize_and_crop(DecodedPixels.whole(image), CONFIG, preprocessing)
    assert np.array_equal(unpatchify(patches), np.asarray(square))


def test_only_the_box_of_the_pixels_is_resized() -> None:
    image = Image.new("RGB", (90, 80), "red")
    image.paste((0, 0, 255), (10, 0, 90, 80))
    square = resize_and_crop(DecodedPixels(image, (10, 0, 90, 80)), CONFIG, Preprocessing(filter="box"))
    assert np.asarray(square).reshape(-1, 3).tolist() == [[0, 0, 255]] * 64 * 64


@pytest.mark.parametrize("limit", [None, 1, 89_478_485])
def test_the_limit_of_pixels_is_the_callers_whatever_pillows_is(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    data = encode(noise(40, 30))
    assert load_upright(open_image(data, max_pixels=1200), 64).image.size == (40, 30)
    with pytest.raises(PixelLimitError, match="it has 40 x 30 pixels; the limit is 1199 in all") as error:
        load_upright(open_image(data, max_pixels=1199), 64)
    assert error.value.size == (40, 30)


def test_a_damaged_image_and_no_image_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UnknownFormatError):
        open_image(str(tmp_path / "text.png"))
    (tmp_path / "torn.png").write_bytes(encode(noise(40, 30))[:1000])
    with pytest.raises(ImageError) as error:
        load_upright(open_image(str(tmp_path / "torn.png")), 64)
    assert not isinstance(error.value, UnknownFormatError)
    with pytest.raises(UnknownFormatError, match="Netpbm"):
        open_image(encode(noise(4, 3), "PPM"))


def test_a_lack_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    image = open_image(encode(noise(4, 3)))
    monkeypatch.setattr(image, "decode", fail)
    with pytest.raises(MemoryError):
        load_upright(image, 64)


def test_a_file_that_is_not_there_is_refused_without_its_name() -> None:
    """Whoever asks for it names it: a message would have the name twice."""
    with pytest.raises(ImageError, match=r"^No such file or directory$"):
        open_image("nowhere.png")


def test_a_jpeg_counts_the_pixels_that_it_is_decoded_to() -> None:
    """8160 x 6144 as a telephone writes it: at an eighth, 1020 x 768."""
    data = encode(Image.new("RGB", (8160, 6144), "teal"), "JPEG")
    assert load_upright(open_image(data, max_pixels=1020 * 768), 224).image.size == (1020, 768)
    with pytest.raises(PixelLimitError, match="8160 x 6144 pixels, decoded at 1020 x 768; the limit is 783359 in all"):
        load_upright(open_image(data, max_pixels=1020 * 768 - 1), 224)
