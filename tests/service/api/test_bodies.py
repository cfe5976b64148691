"""Bodies as clients write them, in whatever pieces they arrive."""

import random
from collections.abc import Iterable

import pytest

from service.api.bodies import ImagesBody
from service.errors import (
    MalformedBody,
    NoImages,
    ServiceError,
    TooManyImages,
    UnsupportedType,
)
from tests.support.bodies import IMAGES, form, images_form, raw_form, read


def pieces(body: bytes, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    cuts = sorted(generator.randrange(len(body)) for _ in range(generator.randrange(1, 60)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


# --- multipart/form-data


def test_every_file_part_is_an_image_in_order() -> None:
    assert read(*images_form(IMAGES)) == ImagesBody(IMAGES)


def test_a_form_may_come_byte_by_byte() -> None:
    kind, body = images_form(IMAGES)
    assert read(kind, (body[i : i + 1] for i in range(len(body)))) == ImagesBody(IMAGES)


def test_a_form_may_come_in_any_pieces() -> None:
    kind, body = images_form(IMAGES)
    for seed in range(200):
        assert read(kind, pieces(body, seed)) == ImagesBody(IMAGES), seed


CURL = (
    b"--------------------------d74496d66958873e\r\n"
    b'Content-Disposition: form-data; name="image"; filename="cat.jpg"\r\n'
    b"Content-Type: image/jpeg\r\n"
    b"\r\n"
    b"\xff\xd8\xff cat\r\n"
    b"--------------------------d74496d66958873e\r\n"
    b'Content-Disposition: form-data; name="image"; filename="dog"\r\n'
    b"Content-Type: application/octet-stream\r\n"
    b"\r\n"
    b"dog\r\n"
    b"--------------------------d74496d66958873e--\r\n"
)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=------------------------d74496d66958873e",
        'multipart/form-data; boundary="------------------------d74496d66958873e"',
        "Multipart/Form-Data; charset=utf-8; Boundary=------------------------d74496d66958873e",
    ],
)
def test_what_curl_sends(kind: str) -> None:
    assert read(kind, CURL).images == [b"\xff\xd8\xff cat", b"dog"]


def test_a_boundary_may_be_quoted_for_its_spaces() -> None:
    body = b'--a b:c\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\nimage\r\n--a b:c--\r\n'
    assert read('multipart/form-data; boundary="a b:c"', body).images == [b"image"]


def test_what_stands_around_the_parts_is_ignored() -> None:
    kind, body = images_form(IMAGES)
    assert read(kind, [b"This is a multipart message.\r\n", body, b"epilogue", b"--more\r\n"]) == ImagesBody(IMAGES)


@pytest.mark.parametrize("blanks", [b" ", b"\t", b" \t   "])
def test_blanks_may_follow_a_boundary(blanks: bytes) -> None:
    """The transport padding of RFC 2046, section 5.1.1."""
    kind, body = images_form(IMAGES)
    boundary = b"--" + kind.partition("boundary=")[2].encode()
    padded = body.replace(boundary + b"\r\n", boundary + blanks + b"\r\n").replace(
        boundary + b"--", boundary + b"--" + blanks
    )
    assert len(padded) == len(body) + (len(IMAGES) + 1) * len(blanks)
    assert read(kind, padded) == ImagesBody(IMAGES)
    assert read(kind, (padded[i : i + 1] for i in range(len(padded)))) == ImagesBody(IMAGES)
    for seed in range(50):
        assert read(kind, pieces(padded, seed)) == ImagesBody(IMAGES), seed


def test_blanks_within_an_image_are_kept() -> None:
    image = b".--x  \r\n.--x  \r\n\r\n --x \r\n\r\n--y  \r\n\r\n-- x \r\n\r"
    body = raw_form('Content-Disposition: form-data; name="i"; filename="i"', content=image)
    for pieces_of_body in ([body], [body[i : i + 1] for i in range(len(body))]):
        assert read("multipart/form-data; boundary=x", pieces_of_body).images == [image]


@pytest.mark.parametrize("missing", [1, 4, 30, 2000])
def test_a_form_that_ends_too_soon_is_malformed(missing: int) -> None:
    kind, body = images_form(IMAGES)
    with pytest.raises(MalformedBody) as refusal:
        read(kind, body[: -missing - 2])  # the last two bytes, a line's end, are nobody's loss
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", CURL),
        ("multipart/form-data; boundary=", CURL),
        ("multipart/form-data; boundary=another", CURL),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n\r\nimage\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: \xff\xfe\r\n\r\nimage\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 20 + b"\r\nimage\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nA: " + b"b" * 10_000 + b"\r\n\r\nimage\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: image/png\r\n\r\nno name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--xyz\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x" + b" " * 10_000 + b"\r\nA: b\r\n\r\nimage\r\n--x--\r\n"),
    ],
)
def test_malformed_forms(kind: str, body: bytes) -> None:
    with pytest.raises(MalformedBody):
        read(kind, body)


def test_a_form_without_parts_holds_no_images() -> None:
    with pytest.raises(NoImages):
        read("multipart/form-data; boundary=x", b"--x--\r\n")


@pytest.mark.parametrize("boundary", ["=_Part_1=:", "a/b", "a,b", "a?b", "(a)", "a@b", "[a]", "a b", "a<b>"])
@pytest.mark.parametrize("ending", ["", "; charset=utf-8", " "])
def test_a_boundary_may_stand_without_the_quotes_that_it_needs(boundary: str, ending: str) -> None:
    body = raw_form('Content-Disposition: form-data; name="i"; filename="i"').replace(b"--x", b"--" + boundary.encode())
    assert read(f"multipart/form-data; boundary={boundary}{ending}", body).images == [b"image"]


def test_a_quoted_boundary_may_hold_anything() -> None:
    body = raw_form('Content-Disposition: form-data; name="i"; filename="i"').replace(b"--x", b'--a;"b')
    assert read('multipart/form-data; charset="a;b"; boundary="a;\\"b"', body).images == [b"image"]


@pytest.mark.parametrize("count", [9, 10, 40])
def test_more_images_than_the_limit(count: int) -> None:
    with pytest.raises(TooManyImages, match="more than 8") as refusal:
        read(*images_form([b"x"] * count))
    assert (refusal.value.status, refusal.value.details) == (413, {"limit": 8})


def test_as_many_images_as_the_limit_and_a_mask() -> None:
    kind, body = form([*(("image", ("x", b"x")) for _ in range(8)), ("mask", ("m", b"m"))])
    assert read(kind, body, takes_mask=True) == ImagesBody([b"x"] * 8, b"m")


def test_reading_stops_at_the_image_too_many() -> None:
    kind, body = images_form([b"x"] * 10)

    def endless() -> Iterable[bytes]:
        yield body.removesuffix(b"--\r\n")
        raise AssertionError("read on")

    with pytest.raises(TooManyImages):
        read(kind, endless())


# --- a raw body


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "image/x-whatever", "application/octet-stream", ""])
def test_a_raw_body_is_one_image(kind: str) -> None:
    assert read(kind, [b"ab", b"", b"c"]) == ImagesBody([b"abc"])


@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream", "", "application/json"])
def test_an_empty_body_holds_no_image(kind: str) -> None:
    with pytest.raises(NoImages):
        read(kind, b"")


def test_curls_default_type_is_refused_with_the_header_to_add() -> None:
    with pytest.raises(UnsupportedType, match="add -H 'Content-Type: application/octet-stream'") as refusal:
        read("application/x-www-form-urlencoded", b"\xff\xd8\xff")
    assert refusal.value.status == 415
    assert refusal.value.details == {"type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/mixed; boundary=x", "application/xml", "video/mp4", "nonsense"]
)
def test_other_types_are_refused_with_those_that_are_not(kind: str) -> None:
    with pytest.raises(UnsupportedType, match="send multipart/form-data, application/json, image/") as refusal:
        read(kind, b"image")
    assert "curl" not in refusal.value.message


def test_random_bodies_are_refused_and_nothing_else() -> None:
    generator = random.Random(5)
    kind, body = images_form(IMAGES)
    for _ in range(500):
        damaged = bytearray(body)
        for _ in range(generator.randrange(1, 8)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        try:
            parsed = read(kind, pieces(bytes(damaged), generator.randrange(1000)))
        except ServiceError as refusal:
            assert 400 <= refusal.status < 500
        else:
            assert len(parsed.images) <= 3
