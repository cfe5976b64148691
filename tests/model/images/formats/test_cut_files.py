"""Files that are cut: pixels that are missing are an error, and never read from what is put behind the file."""

import struct

import numpy as np
import pytest

from model.images.errors import ImageError
from model.images.open_image import open_image
from tests.support.image_files import noise, read_pixels, tiff_file
from tests.support.image_seeds import image_seeds

SEEDS = image_seeds()


@pytest.mark.parametrize("name", SEEDS)
def test_a_file_that_is_cut_is_read_as_the_whole_one_or_refused(name: str) -> None:
    data = SEEDS[name]
    whole = read_pixels(data)
    lengths = {*range(0, len(data), -(-len(data) // 20)), *range(max(0, len(data) - 40), len(data))}
    refused = 0
    for length in lengths:
        try:
            pixels = read_pixels(data[:length])
        except ImageError:
            refused += 1
        else:
            assert np.array_equal(pixels, whole), f"the first {length} of {len(data)} bytes"
    assert refused > 5


@pytest.mark.parametrize("missing", [1, 3, 100])
def test_a_tile_that_is_cut_is_refused(missing: int) -> None:
    """The last tile lies behind the directory."""
    values = noise(32, 32, 1)
    tiles = [values[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16)]
    tags = [(256, 4, [32]), (257, 4, [32]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1]), (322, 3, [16]), (323, 3, [16])]
    stored = tiff_file(tags, [*tiles[:3], b"?" * 256], tiled=True)
    place = stored.rindex(struct.pack("<I", 8 + 3 * 256))
    data = stored[:place] + struct.pack("<I", len(stored)) + stored[place + 4 :] + tiles[3]
    assert np.array_equal(read_pixels(data)[..., 0], values)
    with pytest.raises(ImageError, match="its tiles reach beyond its end"):
        open_image(data[:-missing])
