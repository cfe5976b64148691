"""Any images in any body that is legal come back; any body at all is read or refused by an error of our own."""

import base64
import json
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import assume, given
from hypothesis import strategies as st

from service.api.base64_text import encode_base64
from service.api.bodies import ImagesBody, load_json
from service.api.image_inputs import read_conversations, read_items
from service.errors import ServiceError
from tests.support.bodies import read

TOKEN = string.ascii_letters + string.digits + "'+_-."
BOUNDARY = TOKEN + "(),/:=? "
BYTES = st.binary(min_size=1, max_size=80)
MAX_IMAGES = 8
Draw = Callable[[st.SearchStrategy[Any]], Any]


def cut(draw: Draw, body: bytes) -> list[bytes]:
    """The body in pieces, some of them empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=12)))
    return [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]


# --- multipart/form-data, by an encoder of our own: RFC 2046, section 5.1, and RFC 7578


def texts(boundary: str) -> st.SearchStrategy[bytes]:
    """Bytes that look like the end of a part, but are none."""
    pieces = st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"\r\n--", boundary[:-1].encode(), boundary.encode()])
    return st.lists(pieces | BYTES, min_size=1, max_size=6).map(b"".join).filter(len)


def quote_name(text: str) -> str:
    """As browsers write it: https://html.spec.whatwg.org/#multipart-form-data."""
    return '"' + text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A") + '"'


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters='"\\'), max_size=12)


@st.composite
def part_headers(draw: Draw, is_file: bool) -> bytes:
    spaces = draw(st.sampled_from(["", " ", "  ", "\r\n ", "\r\n\t"]))  # the last ones fold the header
    disposition = f"form-data;{spaces}name={quote_name(draw(NAMES))}"
    if is_file:
        disposition += draw(st.sampled_from(["; filename=", ";filename="])) + quote_name(draw(NAMES) or "x")
    case = draw(st.sampled_from([str, str.lower, str.upper]))
    headers = [(case("Content-Disposition"), disposition)]
    if draw(st.booleans()):
        headers += [("Content-Type", draw(st.sampled_from(["image/png", "application/octet-stream", "text/plain"])))]
    if draw(st.booleans()):
        headers += [(draw(st.sampled_from(["X-Part", "Content-Length-Hint"])), draw(st.text(TOKEN, max_size=9)))]
    headers = draw(st.permutations(headers))
    colon = draw(st.sampled_from([":", ": "]))
    return "".join(f"{name}{colon}{value}\r\n" for name, value in headers).encode()


@st.composite
def forms(draw: Draw) -> tuple[str, bytes, list[bytes]]:
    """Content-Type, body, and the images."""
    boundary = draw(st.text(BOUNDARY, min_size=1, max_size=70).filter(lambda text: text == text.strip()))
    delimiter = b"--" + boundary.encode()
    images = draw(st.lists(texts(boundary), min_size=1, max_size=4))
    assume(not any(delimiter in b"\r\n" + image for image in images))
    preamble = draw(st.sampled_from([b"", b"\r\n", b"This is a form.\r\n"]))
    body = bytearray(preamble)
    for image in images:
        if draw(st.booleans()):  # a file field of a browser in which nothing was chosen
            body += delimiter + b'\r\nContent-Disposition: form-data; name="other"; filename=""\r\n'
            body += b"Content-Type: application/octet-stream\r\n\r\n\r\n"
        body += delimiter + b"\r\n" + draw(part_headers(is_file=True)) + b"\r\n" + image + b"\r\n"
    body += delimiter + b"--" + draw(st.sampled_from([b"", b"\r\n", b"\r\nepilogue"]))
    plain = all(character in TOKEN for character in boundary)
    value = boundary if plain and draw(st.booleans()) else f'"{boundary}"'
    other = draw(st.sampled_from(["", "; charset=utf-8"]))
    return (
        f"{draw(st.sampled_from(['multipart', 'Multipart']))}/form-data{other}; boundary={value}",
        bytes(body),
        images,
    )


@given(forms(), st.data())
def test_any_form_in_any_pieces_gives_its_images(form: tuple[str, bytes, list[bytes]], data: st.DataObject) -> None:
    kind, body, images = form
    assert read(kind, cut(data.draw, body)) == ImagesBody(images)


@given(st.lists(BYTES, min_size=1, max_size=4), st.data())
def test_the_mask_of_a_form_is_no_image(images: list[bytes], data: st.DataObject) -> None:
    place, mask = data.draw(st.integers(0, len(images))), data.draw(BYTES)
    names = ["image"] * len(images)
    names.insert(place, "mask")
    contents = [*images[:place], mask, *images[place:]]
    body = b"".join(
        b'--b0undary-of-it\r\nContent-Disposition: form-data; name="%b"; filename="x"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, content in zip(names, contents, strict=True)
    )
    pieces = cut(data.draw, body + b"--b0undary-of-it--\r\n")
    assert read("multipart/form-data; boundary=b0undary-of-it", pieces, takes_mask=True) == ImagesBody(images, mask)


# --- a raw image, and JSON


@given(BYTES, st.sampled_from(["image/png", "IMAGE/x-unknown", "application/octet-stream; a=b", ""]), st.data())
def test_a_raw_body_in_any_pieces_is_one_image(image: bytes, kind: str, data: st.DataObject) -> None:
    assert read(kind, cut(data.draw, image)) == ImagesBody([image])


@st.composite
def base64_texts(draw: Draw, image: bytes) -> str:
    """An image in base64 as people may write it."""
    encode = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes]))
    text: str = encode(image).decode()
    if draw(st.booleans()):
        text = text.replace("=", "")
    for place in sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)), reverse=True):
        text = text[:place] + draw(st.sampled_from(["\n", "\r\n", " ", "\t"])) + text[place:]
    if draw(st.booleans()):
        text = quote(text, safe=draw(st.sampled_from(["", "/", "/+="])))
    prefixes = ["", "data:image/png;base64,", "DATA:;BASE64,", "\n data:image/jpeg;charset=utf-8; base64,"]
    return str(draw(st.sampled_from(prefixes))) + text


@st.composite
def json_bodies(draw: Draw) -> tuple[bytes, list[bytes]]:
    images = draw(st.lists(BYTES, min_size=1, max_size=4))
    text = json.dumps({"images": [draw(base64_texts(image)) for image in images]}, ensure_ascii=draw(st.booleans()))
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))), images


@given(json_bodies(), st.data())
def test_any_json_in_any_pieces_gives_its_images(
    body_and_images: tuple[bytes, list[bytes]], data: st.DataObject
) -> None:
    body, images = body_and_images
    assert read("application/json", cut(data.draw, body)) == ImagesBody(images)


@given(st.binary(max_size=99))
def test_base64_of_answers_is_that_of_the_standard_library(data: bytes) -> None:
    assert encode_base64(data) == base64.b64encode(data).decode()


# --- bodies that are not legal


def damage(draw: Draw, body: bytes) -> bytes:
    """Replaces, removes, repeats or inserts some bytes."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 12)))
        body = body[:start] + draw(st.binary(max_size=6) | st.just(body[start:end] * 2)) + body[end:]
    return body


def require_own_error(call: Callable[[], object]) -> None:
    """The call returns, or raises an error that blames the client."""
    try:
        call()
    except ServiceError as error:
        assert 400 <= error.status < 500 and error.code != "internal_error"
        json.dumps(error.body())


@given(forms() | json_bodies().map(lambda body: ("application/json", *body)), st.data())
def test_a_damaged_body_gives_the_same_in_any_pieces(form: tuple[str, bytes, list[bytes]], data: st.DataObject) -> None:
    kind, body, _ = form
    body = damage(data.draw, body)
    skips = data.draw(st.booleans())

    def outcome(pieces: list[bytes]) -> object:
        try:
            found = read(kind, pieces, MAX_IMAGES, skips=skips)
        except ServiceError as error:
            assert 400 <= error.status < 500
            return type(error)
        return found.images, found.mask, {index: type(error) for index, error in found.errors.items()}

    assert outcome([body]) == outcome(cut(data.draw, body))


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | BYTES.map(encode_base64),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(["images", "mask", "image", "image_url", "url", "content", "role", "type", "text"])
            | st.text(max_size=4),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.booleans(), st.booleans())
def test_any_json_is_read_or_refused(content: Any, takes_mask: bool, skips: bool) -> None:
    body = json.dumps(content).encode()
    require_own_error(lambda: read("application/json", body, MAX_IMAGES, takes_mask, skips))
    require_own_error(lambda: read_items(content, MAX_IMAGES))
    require_own_error(lambda: read_conversations(content, MAX_IMAGES))


@given(st.binary(max_size=60), st.text(max_size=40), st.booleans())
def test_any_bytes_of_any_type_are_read_or_refused(body: bytes, kind: str, is_form: bool) -> None:
    full = f"multipart/form-data; boundary={kind}" if is_form else kind
    require_own_error(lambda: read(full, body, MAX_IMAGES))
    require_own_error(lambda: load_json(body))
