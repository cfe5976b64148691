"""Pictures as people really send them, over HTTP; every kind has tests of its own under tests/model/images."""

import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live.conftest import LiveServer
from tests.support.image_files import ADOBE_RGB, SIGNATURE, add_scans, chunk, jpeg_file, noise, png_file
from tests.support.images import encoded

IMAGE = Image.fromarray(noise(8, 8)).resize((320, 240), Image.Resampling.BICUBIC)
RAW_BODY = {"content-type": "application/octet-stream"}


def vector(client: httpx.Client, data: bytes) -> np.ndarray:
    answer = client.post("/embed", content=data, headers=RAW_BODY)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"][0])


def test_damaged_pixels_are_an_error_and_not_black(client: httpx.Client) -> None:
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise(120, 90)))
    damaged = rows[: len(rows) // 3] + b"\xff" * 64 + rows[len(rows) // 3 + 64 :]
    header = struct.pack(">IIBBBBB", 120, 90, 8, 2, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", damaged) + chunk(b"IEND", b"")
    answer = client.post("/embed", content=data, headers=RAW_BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "undecodable_image")


def test_what_every_viewer_shows_has_the_vector_of_what_it_shows(client: httpx.Client) -> None:
    jpeg = jpeg_file(IMAGE)
    assert np.array_equal(vector(client, jpeg[:-2] + b"\0\0"), vector(client, jpeg))
    pixels = np.asarray(IMAGE)
    damaged = png_file(pixels, before=chunk(b"gAMA", b"\0", damage=1) + chunk(b"iTXt", b"k\0\1\0\0\0" + bytes(9)))
    assert np.array_equal(vector(client, damaged), vector(client, png_file(pixels)))


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), 415, "image 0 is a camera raw (CR2); served are JPEG, PNG"),
        (b"PK\3\4" + bytes(100), 415, "image 0 is a ZIP archive; served are"),
        (add_scans(900, (700, 700)), 400, "scans; the limit is 300"),
        (jpeg_file(Image.new("L", (8200, 8200))), 200, ""),
        (encoded(Image.new("L", (8200, 8200))), 413, "image 0 has 8200 x 8200 pixels; the limit is 64000000 in all"),
    ],
    ids=["camera raw", "archive", "scans", "a large JPEG", "a large PNG"],
)
def test_files_are_refused_by_name(client: httpx.Client, data: bytes, status: int, message: str) -> None:
    answer = client.post("/embed", content=data, headers=RAW_BODY)
    assert answer.status_code == status
    assert message in answer.text


def test_a_profile_that_cannot_be_used_is_counted(server: LiveServer, client: httpx.Client) -> None:
    before = server.metric("mae_ignored_profiles_total")
    converted = vector(client, encoded(IMAGE, icc_profile=ADOBE_RGB))
    ignored = vector(client, encoded(IMAGE, icc_profile=ADOBE_RGB[:140]))
    assert server.metric("mae_ignored_profiles_total") == before + 1
    assert np.array_equal(ignored, vector(client, encoded(IMAGE)))
    assert not np.allclose(converted, ignored, atol=1e-3)


def test_a_mask_is_drawn_over_what_people_see(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = Image.new("L", (224, 224))
    mask.paste(255, (0, 0, 224, 112))
    files = {"image": jpeg_file(IMAGE.resize((224, 224)), exif=exif), "mask": encoded(mask)}
    answer = client.post("/reconstruct", files=files, headers={"accept": "application/json"}).json()
    half = len(answer["mask"]) // 2
    assert answer["mask"] == [1] * half + [0] * half
