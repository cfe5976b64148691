"""Bodies as clients write them, in whatever pieces they arrive."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest

from service.api.bodies import ImagesBody, read_images
from service.errors import (
    InvalidParameter,
    MalformedBody,
    NoImages,
    ServiceError,
    TooManyImages,
    UnsupportedType,
)

IMAGES = [b"\x89PNG\r\n\x1a\n first", b"\r\n--second\r\n--\r\n", bytes(range(256)) * 40]


def read(
    kind: str, body: bytes | Iterable[bytes], max_images: int = 8, takes_mask: bool = False, skips: bool = False
) -> ImagesBody:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in [body] if isinstance(body, bytes) else body:
            yield chunk
        yield b""  # as Starlette ends every stream

    return asyncio.run(read_images(kind, chunks(), max_images, takes_mask, skips))


def form(files: list[tuple[str, Any]], data: dict[str, str] | None = None) -> tuple[str, bytes]:
    """Content-Type and body as httpx writes them."""
    request = httpx.Request("POST", "http://service/embed", files=files, data=data)
    return request.headers["content-type"], request.read()


def images_form(images: list[bytes], name: str = "image") -> tuple[str, bytes]:
    return form([(name, (f"{number}.png", image, "image/png")) for number, image in enumerate(images)])


def pieces(body: bytes, seed: int) -> list[bytes]:
    generator = random.Random(seed)
    cuts = sorted(generator.randrange(len(body)) for _ in range(generator.randrange(1, 60)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


# --- multipart/form-data


def test_every_file_part_is_an_image_in_order() -> None:
    assert read(*images_form(IMAGES)) == ImagesBody(IMAGES)


def test_parts_may_have_any_name_and_any_type() -> None:
    files = [
        ("a", ("x", IMAGES[0])),
        ("b[]", ("y.bin", IMAGES[1], "application/octet-stream")),
        ("", ("é ü.png", b"3")),
    ]
    assert read(*form(files)).images == [IMAGES[0], IMAGES[1], b"3"]


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


def test_an_empty_file_is_named() -> None:
    with pytest.raises(NoImages, match="'second' is empty") as refusal:
        read(*form([("first", ("a", b"1")), ("second", ("b", b""))]))
    assert refusal.value.details == {"image": 1}


def test_a_form_field_is_no_parameter() -> None:
    kind, body = form([("image", ("a", b"1"))], {"pool": "cls"})
    with pytest.raises(InvalidParameter, match="'pool' is no file: parameters go into the query") as refusal:
        read(kind, body)
    assert refusal.value.details == {"parameter": "pool"}


@pytest.mark.parametrize("mask_first", [False, True])
def test_a_mask_part_is_no_image_where_masks_are_taken(mask_first: bool) -> None:
    files = [("image", ("a.png", b"image")), ("mask", ("m.png", b"mask"))]
    kind, body = form(files[::-1] if mask_first else files)
    assert read(kind, body, takes_mask=True) == ImagesBody([b"image"], b"mask")
    assert sorted(read(kind, body).images) == [b"image", b"mask"]


def test_two_masks_are_one_too_many() -> None:
    kind, body = form([("mask", ("a", b"1")), ("mask", ("b", b"2")), ("image", ("c", b"3"))])
    with pytest.raises(InvalidParameter) as refusal:
        read(kind, body, takes_mask=True)
    assert refusal.value.details == {"parameter": "mask"}


def raw_form(*heads: str | bytes, content: bytes = b"image") -> bytes:
    """A form with the boundary x whose parts have these headers."""
    lines = [head.encode() if isinstance(head, str) else head for head in heads]
    return b"".join(b"--x\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head in lines) + b"--x--\r\n"


@pytest.mark.parametrize(
    "head",
    [
        "Content-Disposition: form-data; name=\"image\"; filename*=UTF-8''caf%C3%A9.jpg",
        "Content-Disposition: form-data; name=image; filename* = UTF-8''x.jpg",
        'Content-Disposition: attachment; filename="x.jpg"',
        'content-disposition: Attachment; name="image"; filename="x.jpg"',
        "Content-Disposition: attachment",
        'Content-Disposition: inline; filename="x.jpg"',
        'Content-Disposition: file; filename="x.jpg"',
        'Content-Disposition: form-data; name="image"; filename="caf\u00e9.jpg"'.encode("latin-1"),
        'Content-Disposition: form-data; name="\u00e9"; filename="caf\u00e9.jpg"'.encode("latin-1"),
        'Content-Disposition: form-data; name="image"; filename="我.jpg"',
    ],
)
def test_parts_that_are_files_all_the_same(head: str | bytes) -> None:
    assert read("multipart/form-data; boundary=x", raw_form(head)).images == [b"image"]


def test_a_name_that_only_looks_like_a_file_names_a_field() -> None:
    body = raw_form('Content-Disposition: form-data; name="a; filename*=b"')
    with pytest.raises(InvalidParameter) as refusal:
        read("multipart/form-data; boundary=x", body)
    assert refusal.value.details == {"parameter": "a; filename*=b"}


@pytest.mark.parametrize(
    "option", ["name=file", "name=inline; x=1", 'name="file"; x="a\\"; filename*=b', 'name="file"; x="\\']
)
def test_only_the_disposition_itself_or_a_file_name_makes_a_part_a_file(option: str) -> None:
    """Neither a field that has such a name, nor a file name within a text that has no end."""
    with pytest.raises(InvalidParameter, match="is no file"):
        read("multipart/form-data; boundary=x", raw_form(f"Content-Disposition: form-data; {option}"))


@pytest.mark.parametrize("charset", ["utf-8", "latin-1"])
def test_a_name_outside_ascii_is_told_as_it_was_written(charset: str) -> None:
    body = raw_form('Content-Disposition: form-data; name="größe"'.encode(charset))
    with pytest.raises(InvalidParameter, match="'größe' is no file"):
        read("multipart/form-data; boundary=x", body)


@pytest.mark.parametrize("boundary", ["=_Part_1=:", "a/b", "a,b", "a?b", "(a)", "a@b", "[a]", "a b", "a<b>"])
@pytest.mark.parametrize("ending", ["", "; charset=utf-8", " "])
def test_a_boundary_may_stand_without_the_quotes_that_it_needs(boundary: str, ending: str) -> None:
    body = raw_form('Content-Disposition: form-data; name="i"; filename="i"').replace(b"--x", b"--" + boundary.encode())
    assert read(f"multipart/form-data; boundary={boundary}{ending}", body).images == [b"image"]


def test_a_quoted_boundary_may_hold_anything() -> None:
    body = raw_form('Content-Disposition: form-data; name="i"; filename="i"').replace(b"--x", b'--a;"b')
    assert read('multipart/form-data; charset="a;b"; boundary="a;\\"b"', body).images == [b"image"]


EMPTY_INPUT = b'--x\r\nContent-Disposition: form-data; name="other"; filename=""\r\n'
EMPTY_INPUT += b"Content-Type: application/octet-stream\r\n\r\n\r\n"


def test_a_file_input_in_which_nothing_was_chosen_is_no_image() -> None:
    good = raw_form('Content-Disposition: form-data; name="i"; filename="i"')
    assert read("multipart/form-data; boundary=x", EMPTY_INPUT * 3 + good).images == [b"image"]
    with pytest.raises(NoImages, match="no image in the body"):
        read("multipart/form-data; boundary=x", EMPTY_INPUT + b"--x--\r\n")


@pytest.mark.parametrize("filename", ["", '; filename=""', '; filename="mask.png"'])
def test_an_empty_mask_part_is_none(filename: str) -> None:
    mask = f'--x\r\nContent-Disposition: form-data; name="mask"{filename}\r\n\r\n\r\n'.encode()
    good = raw_form('Content-Disposition: form-data; name="i"; filename="i"')
    assert read("multipart/form-data; boundary=x", mask + good, takes_mask=True) == ImagesBody([b"image"])


def test_an_empty_file_is_skipped() -> None:
    body = read(*form([("first", ("a", b"1")), ("second", ("b", b""))]), skips=True)
    assert body.images == [b"1", b""]
    assert body.errors[1].message == "the file part 'second' is empty" and list(body.errors) == [1]


def test_a_mask_alone_is_no_image() -> None:
    with pytest.raises(NoImages):
        read(*form([("mask", ("a", b"1"))]), takes_mask=True)


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
