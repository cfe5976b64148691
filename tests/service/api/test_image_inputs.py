"""Every shape in which clients of other protocols send images, and what is no image."""

import base64
from typing import Any

import numpy as np
import pytest

from service.api.image_inputs import read_conversations, read_items
from service.errors import ImagesOnly, MalformedBody, NoImages, ServiceError, TooManyImages
from tests.support.images import encoded

FILES = [encoded(np.full((4, 4, 3), shade, np.uint8)) for shade in (10, 20, 30)]
BARE = [base64.b64encode(file).decode() for file in FILES]
URIS = [f"data:image/png;base64,{text}" for text in BARE]
CAT = "https://example.org/cat.jpg"


def image_url(uri: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": uri}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


SYSTEM = {"role": "system", "content": "Represent the given image."}


@pytest.mark.parametrize(
    "item",
    [
        URIS[0],
        BARE[0],
        BARE[0].rstrip("="),
        "\n".join(BARE[0][i : i + 76] for i in range(0, len(BARE[0]), 76)) + "\n",
        {"image": URIS[0]},
        {"image": BARE[0]},
        {"image": {"url": URIS[0]}},
        {"text": "an instruction", "image": BARE[0]},
        {"bytes": BARE[0]},
        {"url": URIS[0]},
        {"image_base64": BARE[0]},
        image_url(URIS[0]),
        {"type": "image_url", "image_url": URIS[0]},
        {"type": "image_url", "image_url": {"url": URIS[0], "detail": "low"}, "uuid": "x"},
        {"type": "image_base64", "image_base64": URIS[0]},
        {"type": "input_image", "image_url": URIS[0]},
        {"content": [image_url(URIS[0])]},
        {"content": [image_url(URIS[0]), text("Represent the given image.")]},
        {"content": [text("Represent the given image."), image_url(URIS[0]), text(" ")]},
        {"content": URIS[0]},
        user(image_url(URIS[0])),
        user(URIS[0]),
        [user(image_url(URIS[0]), text("Represent the given image."))],
        [SYSTEM, user(image_url(URIS[0])), {"role": "assistant", "content": None}],
        [SYSTEM, user(image_url(URIS[0]), text("")), {"role": "assistant", "content": [text("")]}],
    ],
)
def test_an_item_of_the_input(item: Any) -> None:
    assert read_items([item], 1) == [FILES[0]]
    assert read_items([URIS[1], item, URIS[2]], 3) == [FILES[1], FILES[0], FILES[2]]
    if not isinstance(item, list):
        assert read_items(item, 1) == [FILES[0]], "the input may be one item"


def test_messages_in_the_input_are_items_or_one_conversation() -> None:
    messages = [user(image_url(uri)) for uri in URIS]
    assert read_items(messages, 3) == FILES
    assert read_items([SYSTEM, messages[0]], 1) == [FILES[0]]
    assert read_items([[message] for message in messages], 3) == FILES


def test_one_conversation_or_several() -> None:
    first, second = ([SYSTEM, user(image_url(uri))] for uri in URIS[:2])
    assert read_conversations(first, 1) == [FILES[0]]
    assert read_conversations([first, second], 2) == FILES[:2]


@pytest.mark.parametrize(
    "item",
    [
        "a photo of two cats",
        "cats",
        "https",
        "",
        "Katze auf dem Dach, 2019",
        "猫",
        "two\tcats",
        42,
        [1, 2, 3],
        {"text": "a cat"},
        text("a cat"),
        user("a cat"),
        user(text("one"), image_url(URIS[0]), text("two")),
        [SYSTEM, user(image_url(URIS[0]), text("another"))],
        {"image": "a cat"},
        {"content": [{"type": "input_audio", "input_audio": {"data": "aaaa"}}]},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aaaa"}},
        user(image_url(URIS[0]), {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aaaa"}}),
        {"content": [text("a cat")]},
        {"text": {"not": "a string"}},
    ],
)
def test_what_is_no_image_gets_one_sentence(item: Any) -> None:
    with pytest.raises(ImagesOnly, match=r"^input 1 is no image, and this model sees images only: send each as a data"):
        read_items([URIS[0], item], 4)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (CAT, "URLs are never fetched"),
        ({"image": CAT}, "URLs are never fetched"),
        ({"url": "http://169.254.169.254/"}, "URLs are never fetched"),
        (image_url(CAT), "URLs are never fetched"),
        (user(image_url("file:///etc/passwd")), "URLs are never fetched"),
        (user(image_url(URIS[0]), image_url(URIS[1])), "2 images are in one item"),
        ([user(image_url(URIS[0])), user(image_url(URIS[1]))], "2 images are in one item"),
        ({"image": URIS[0], "bytes": BARE[1]}, "2 images are in one item"),
        (None, "no shape that is known"),
        ({}, "no shape that is known"),
        ({"picture": URIS[0]}, "no shape that is known"),
        ([], "no shape that is known"),
        (user(), "no shape that is known"),
        (user(None), "no shape that is known"),
        ({"image": 7}, "must be a string"),
        ({"type": "image_url", "image_url": {"detail": "low"}}, "must be a string"),
        ("data:image/png,raw", "data URI without base64"),
        ("data:image/png;base64,*", "no base64"),
    ],
)
def test_other_faults_are_named_with_the_image(item: Any, words: str) -> None:
    with pytest.raises(MalformedBody, match=words) as raised:
        read_items([URIS[0], item], 4)
    assert "image 1" in raised.value.message and raised.value.details == {"image": 1}


def test_how_many() -> None:
    assert len(read_items(URIS, 3)) == 3
    for read, value in ((read_items, URIS), (read_conversations, [[user(image_url(uri))] for uri in URIS])):
        with pytest.raises(TooManyImages):
            read(value, 2)  # type: ignore[arg-type]
        with pytest.raises(NoImages):
            read([], 2)


@pytest.mark.parametrize("value", ["text", {"role": "user"}, 3, None])
def test_messages_are_a_list(value: Any) -> None:
    with pytest.raises(MalformedBody, match="messages must be a list"):
        read_conversations(value, 2)


def test_deeply_nested_json_is_no_image() -> None:
    item: Any = URIS[0]
    for _ in range(5000):
        item = {"content": [item]}
    with pytest.raises(ServiceError):
        read_items([item], 1)
