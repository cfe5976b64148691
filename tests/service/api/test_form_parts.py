"""Parts of a form: which of them are files, fields or the mask, and what the empty ones are."""

import pytest

from service.api.bodies import ImagesBody
from service.errors import (
    InvalidParameter,
    NoImages,
)
from tests.support.bodies import IMAGES, form, raw_form, read


def test_parts_may_have_any_name_and_any_type() -> None:
    files = [
        ("a", ("x", IMAGES[0])),
        ("b[]", ("y.bin", IMAGES[1], "application/octet-stream")),
        ("", ("é ü.png", b"3")),
    ]
    assert read(*form(files)).images == [IMAGES[0], IMAGES[1], b"3"]


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
