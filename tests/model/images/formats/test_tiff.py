"""Layouts of TIFF: read right, or refused by name."""

import gc
import struct
import weakref
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from model.images.errors import ImageError, UnknownFormatError
from model.images.open_image import open_image
from model.images.preprocess import load_upright
from tests.support.image_files import noise, read_pixels, tiff_file

W, H = 48, 40
ORDERS = {"II": "<", "MM": ">"}
PACKED = {1: lambda data: data, 8: zlib.compress}
"""Compressions: none, deflate."""


def tags(bits: int, samples: int = 1, photometric: int = 1, compression: int = 1, **more: tuple[int, ...]) -> list:
    numbers = {"planar": 284, "extra": 338, "sample_format": 339, "max_value": 281, "orientation": 274, "rows": 278}
    numbers |= {"subdirectories": 330, "predictor": 317}
    listed = [
        (256, 4, [W]),
        (257, 4, [H]),
        (258, 3, [bits] * samples),
        (259, 3, [compression]),
        (262, 3, [photometric]),
    ]
    listed += [(277, 3, [samples])]
    return listed + [(numbers[name], 3, list(value)) for name, value in more.items()]


def stored(values: np.ndarray, order: str) -> bytes:
    return values.astype(order + "u2" if values.dtype == np.uint16 else np.uint8).tobytes()


def to_bytes(values: np.ndarray, white: int = 65535) -> np.ndarray:
    return (np.minimum(values, white) * 255.0 / white).round()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("strips", [1, 4])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_greys_of_sixteen_bits(order: str, compression: int, strips: int, photometric: int) -> None:
    values = noise(W, H, 1, np.uint16)
    parts = [PACKED[compression](stored(part, ORDERS[order])) for part in np.split(values, strips)]
    data = tiff_file(
        tags(16, photometric=photometric, compression=compression, rows=(H // strips,)), parts, ORDERS[order]
    )
    expected = to_bytes(values) if photometric else 255 - to_bytes(values)
    assert np.abs(read_pixels(data)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_greys_of_twelve_bits(order: str, compression: int, photometric: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (H, W), dtype=np.uint16)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    data = tiff_file(
        tags(12, photometric=photometric, compression=compression, rows=(H,)),
        [PACKED[compression](packed)],
        ORDERS[order],
    )
    expected = to_bytes(values, 4095) if photometric else 255 - to_bytes(values, 4095)
    assert np.abs(read_pixels(data)[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_greys_of_few_bits(bits: int, photometric: int) -> None:
    highest = 2**bits - 1
    values = np.random.default_rng(0).integers(0, highest + 1, (H, W), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., -bits:].reshape(H, -1), axis=1).tobytes()
    found = read_pixels(tiff_file(tags(bits, photometric=photometric, rows=(H,)), [packed]))[..., 0]
    expected = to_bytes(values, highest)
    assert np.array_equal(found, expected if photometric else 255 - expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2], ids=["chunky", "planar"])
@pytest.mark.parametrize("extra", [None, 0], ids=["three", "and one more"])
def test_colours(order: str, compression: int, bits: int, planar: int, extra: int | None) -> None:
    samples = 3 if extra is None else 4
    values = noise(W, H, samples, np.uint8 if bits == 8 else np.uint16)
    parts = [values] if planar == 1 else [values[..., plane] for plane in range(samples)]
    more = {} if extra is None else {"extra": (extra,)}
    data = tiff_file(
        tags(bits, samples, 2, compression, planar=(planar,), rows=(H,), **more),
        [PACKED[compression](stored(part, ORDERS[order])) for part in parts],
        ORDERS[order],
    )
    expected = values[..., :3] if bits == 8 else to_bytes(values[..., :3])
    assert np.abs(read_pixels(data) - expected.astype(int)).max() <= 1


def test_a_largest_value_is_white() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (H, W), dtype=np.uint16)
    data = tiff_file(tags(16, max_value=(4095,), rows=(H,)), [stored(values, "<")])
    assert np.abs(read_pixels(data)[..., 0] - to_bytes(values, 4095)).max() <= 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_is_turned_once(order: str, orientation: int, photometric: int) -> None:
    values = noise(W, H, 1, np.uint16)
    listed = tags(16, photometric=photometric, orientation=(orientation,), rows=(H,))
    image = open_image(tiff_file(listed, [stored(values, ORDERS[order])], ORDERS[order]))
    assert image.size == (W, H) and image.orientation == orientation
    found = np.asarray(load_upright(image, None).image)
    upright = to_bytes(values) if photometric else 255 - to_bytes(values)
    for turn in {2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "thv", 8: "tv"}.get(orientation, ""):
        upright = {"h": upright[:, ::-1], "v": upright[::-1], "t": upright.T}[turn]
    assert np.abs(found - upright).max() <= 1


def test_a_fourth_sample_of_zeros_that_nobody_names_is_no_alpha() -> None:
    values = noise(W, H, 4)
    values[..., 3] = 0
    assert np.array_equal(read_pixels(tiff_file(tags(8, 4, 2, rows=(H,)), [stored(values, "<")])), values[..., :3])
    named = tiff_file(tags(8, 4, 2, rows=(H,), extra=(2,)), [stored(values, "<")])
    assert (read_pixels(named) == 255).all(), "there it is what was said"


REFUSED = {
    "32 bits": (tags(32, sample_format=(1,)), "integers of 32 bits, which have no known range"),
    "floats": (tags(32, sample_format=(3,)), "floating-point numbers of 32 bits, which have no known range"),
    "half floats": (tags(16, sample_format=(3,)), "floating-point numbers of 16 bits"),
    "signed": (tags(16, sample_format=(2,)), "signed integers of 16 bits"),
    "signed bytes": (tags(8, sample_format=(2,)), "signed integers of 8 bits"),
    "grey with alpha in 16 bits": (tags(16, 2, extra=(2,)), "a TIFF of a kind that is not read: 2 x 16 bits"),
    "planar alpha in 16 bits": (tags(16, 4, 2, planar=(2,), extra=(2,)), "4 x 16 bits, RGB, planar"),
    "subsampled": (tags(8, 3, 6), "3 x 8 bits, YCbCr, compression 1, subsampled"),
    "six bits": (tags(6), "1 x 6 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_layouts_are_refused_by_name(name: str) -> None:
    listed, message = REFUSED[name]
    data = tiff_file([*listed, (278, 4, [H])], [bytes(W * H * 16)])
    with pytest.raises(ImageError, match=message) as error:
        load_upright(open_image(data), 224)
    assert not isinstance(error.value, UnknownFormatError)


def parts_of(values: np.ndarray, width: int, height: int) -> list[bytes]:
    """Strips or tiles of an image that they divide."""
    corners = [(y, x) for y in range(0, H, height) for x in range(0, W, width)]
    return [values[y : y + height, x : x + width].tobytes() for y, x in corners]


STRIPS, TILES = [(278, 3, [10])], [(322, 3, [16]), (323, 3, [8])]


FAULTS = [(compression, fault) for compression in PACKED for fault in ("half of them", "one", "the last has no place")]


@pytest.mark.parametrize(("compression", "fault"), [*FAULTS, (8, "one is empty")])
@pytest.mark.parametrize("tiled", [False, True], ids=["strips", "tiles"])
def test_strips_and_tiles_that_are_missing_are_not_painted_black(compression: int, tiled: bool, fault: str) -> None:
    values = noise(W, H, 3)
    parts = [PACKED[compression](part) for part in parts_of(values, *((16, 8) if tiled else (W, 10)))]
    listed = [*tags(8, 3, 2, compression), *(TILES if tiled else STRIPS)]
    whole = tiff_file(listed, parts, tiled=tiled)
    assert np.array_equal(read_pixels(whole), values)
    if fault == "the last has no place":
        place = whole.rindex(
            struct.pack("<I", 8 + sum(map(len, parts[:-1])) + sum(len(part) % 2 for part in parts[:-1]))
        )
        damaged = whole[:place] + bytes(4) + whole[place + 4 :]
    elif fault == "one is empty":
        damaged = tiff_file(listed, [*parts[:2], b"", *parts[3:]], tiled=tiled)
    else:
        damaged = tiff_file(listed, parts[: len(parts) // 2 if fault == "half of them" else -1], tiled=tiled)
    name = "tiles" if tiled else "strips"
    with pytest.raises(ImageError, match=rf"it has \d+ of the {len(parts)} {name} that its size needs"):
        open_image(damaged)


def test_a_plane_that_is_missing_is_not_painted_black() -> None:
    values = noise(W, H, 3)
    planes = [values[..., channel].tobytes() for channel in range(3)]
    listed = tags(8, 3, 2, planar=(2,), rows=(H,))
    assert np.array_equal(read_pixels(tiff_file(listed, planes)), values)
    with pytest.raises(ImageError, match="it has 2 of the 3 strips"):
        open_image(tiff_file(listed, planes[:2]))


def test_a_tile_far_larger_than_its_image_is_refused() -> None:
    listed = [*tags(8, 3, 2, 8), (322, 4, [19_200]), (323, 4, [19_200])]
    with pytest.raises(ImageError, match="its tiles of 19200 x 19200 pixels are far larger than the image"):
        open_image(tiff_file(listed, [zlib.compress(b"")], tiled=True))


def test_a_tile_is_weighed_as_a_whole() -> None:
    def weight(side: int) -> int:
        listed = [*tags(8, 3, 2, 8), (322, 4, [side]), (323, 4, [side])]
        return open_image(tiff_file(listed, [zlib.compress(b"")], tiled=True)).decode_bytes(224)

    assert weight(2048) - weight(48) == 3 * (2048**2 - 48**2)


def test_the_error_of_a_damaged_file_keeps_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without garbage collection, and while the error lives."""
    images: list[weakref.ref[Image.Image]] = []
    load = TiffImagePlugin.TiffImageFile.load

    def watch(image: TiffImagePlugin.TiffImageFile) -> object:
        images.append(weakref.ref(image))
        return load(image)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", watch)
    damaged = tiff_file(tags(8, 3, 2, 8, rows=(H,)), [zlib.compress(b"too short")])
    gc.disable()
    try:
        with pytest.raises(ImageError) as error:
            load_upright(open_image(damaged), 224)
        assert error.value is not None and images and all(image() is None for image in images)
    finally:
        gc.enable()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compression", PACKED)
def test_planar_inks_of_sixteen_bits(order: str, compression: int) -> None:
    values = noise(W, H, 4, np.uint16)
    planes = [PACKED[compression](stored(values[..., ink], ORDERS[order])) for ink in range(4)]
    data = tiff_file(tags(16, 4, 5, compression, planar=(2,), rows=(H,)), planes, ORDERS[order])
    expected = Image.fromarray(to_bytes(values).astype(np.uint8), "CMYK").convert("RGB")
    assert np.abs(read_pixels(data) - np.asarray(expected, int)).max() <= 2


@pytest.mark.parametrize("compression", PACKED)
def test_a_palette_of_eight_bits_is_not_black(compression: int) -> None:
    """As libtiff reads it: no entry is above 255."""
    indices, palette = noise(W, H, 1), noise(256, 3, 1)
    for factor in (1, 257):
        entries = [int(entry) * factor for entry in palette.ravel()]
        data = tiff_file(
            [*tags(8, 1, 3, compression, rows=(H,)), (320, 3, entries)], [PACKED[compression](indices.tobytes())]
        )
        assert np.array_equal(read_pixels(data), palette.T[indices])


def test_a_file_of_very_many_strips_is_refused_by_name() -> None:
    data = tiff_file([*tags(8), (278, 4, [1])], [b"\0"] * 10_001)
    with pytest.raises(ImageError, match="more than 10000 strips"):
        open_image(data)


def camera_raw(photometric: int, dng: bool = False) -> bytes:
    """A preview, and a directory inside its own that holds what the sensor saw."""
    listed = [*tags(8), (278, 4, [H]), (330, 4, [0])]
    if dng:
        listed += [(50706, 1, b"\1\4\0\0")]
    data = bytearray(tiff_file(listed, [bytes(W * H)]))
    inner = struct.pack("<H", 1) + struct.pack("<HHIHH", 262, 3, 1, photometric, 0) + bytes(4)
    place = data.index(struct.pack("<HHI", 330, 4, 1)) + 8
    data[place : place + 4] = struct.pack("<I", len(data))
    return bytes(data) + inner


@pytest.mark.parametrize("data", [camera_raw(32803), camera_raw(34892), camera_raw(1, dng=True)])
def test_a_camera_raw_is_no_thumbnail(data: bytes) -> None:
    with pytest.raises(UnknownFormatError, match="a camera raw"):
        open_image(data)


def test_a_preview_beside_other_pictures_is_read() -> None:
    assert (read_pixels(camera_raw(2)) == 0).all()


@pytest.mark.parametrize("cut", [4, 8, 9, 12, 40])
def test_a_directory_that_is_cut_short_is_refused(cut: int) -> None:
    data = tiff_file(tags(8), [bytes(W * H)])
    with pytest.raises(ImageError):
        load_upright(open_image(data[:cut]), 224)


def test_values_of_premultiplied_alpha_are_read() -> None:
    values = noise(W, H, 2)
    values[..., 0] = np.minimum(values[..., 0], values[..., 1])
    data = tiff_file(tags(8, 2, extra=(1,), rows=(H,)), [stored(values, "<")])
    expected = values[..., 0].astype(int) + 255 - values[..., 1]
    assert np.abs(read_pixels(data)[..., 0] - expected).max() <= 2
    assert Image.fromarray(read_pixels(data)).mode == "RGB"


@pytest.mark.parametrize("tag", [274, 281, 330, 700, 34675, 33432])
@pytest.mark.parametrize("kind", [1, 2, 5, 12, 99])
def test_damaged_tags_that_pixels_do_not_need_refuse_nothing(tag: int, kind: int) -> None:
    """Values outside the file, and of types that the tag cannot have."""
    values = noise(W, H, 3)
    data = bytearray(tiff_file([*tags(8, 3, 2, rows=(H,)), (tag, 4, [1])], [stored(values, "<")]))
    place = data.index(struct.pack("<HHI", tag, 4, 1))
    data[place : place + 12] = struct.pack("<HHII", tag, kind, 1000, 2**31)
    assert np.array_equal(read_pixels(bytes(data)), values)
