"""The images in the JSON of other protocols: one lenient parser for every shape that their clients send.

Of one item:

    "data:image/png;base64,…"       also bare base64
    {"image": …}                    also bytes, image_base64, image_url and url; the value may be {"url": …}
    {"content": […]}                a message of a chat, or its parts; a part is one of the above
    [message, …]                    a conversation

An item holds exactly one image. One text beside it is an instruction, which is ignored: the model sees images only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.api.bodies import read_base64_image, too_many_images
from service.errors import ImagesOnly, MalformedBody, NoImages

IMAGE_KEYS = ("image", "image_url", "image_base64", "bytes", "url")
IMAGES_ONLY = (
    "this model sees images only: send each as a data URI or in base64, with one instruction beside it at most"
)
IMAGE_SHAPES = 'send a data URI, base64, {"image": base64}, or {"type": "image_url", "image_url": {"url": data URI}}'
SMALLEST_IMAGE = 24
"""Bytes. No format has a smaller file, and few words are longer, so a word that could be base64 is taken for a word."""


@dataclass
class _Item:
    """What one item of the input holds."""

    images: list[object] = field(default_factory=list)
    """Data URIs or base64, not decoded yet."""
    texts: int = 0
    """The number of texts that are not blank."""
    others: int = 0
    """The number of parts that are neither image nor text: token numbers, sound, video."""


def read_items(value: object, max_images: int) -> list[bytes]:
    """The images of `input`, which is one item, a list of items, or a conversation with one image.

    Raises:
        NoImages: there is no item.
        TooManyImages: there are more than `max_images`.
        ImagesOnly: an item is text, or has more texts than one instruction.
        MalformedBody: an item has another shape, several images, or an image that is a URL or no base64.
    """
    items = value if isinstance(value, list) else [value]
    if len(items) > 1 and all(isinstance(item, dict) and "role" in item for item in items):
        conversation = _parse(items)
        if len(conversation.images) == 1:  # otherwise each message is an item
            items = [items]
    return _read(items, max_images)


def read_conversations(value: object, max_images: int) -> list[bytes]:
    """The images of `messages`, which is one conversation or a list of them; one image each.

    Raises:
        ServiceError: as `read_items`.
    """
    if not isinstance(value, list):
        raise MalformedBody("messages must be a list of messages, or a list of such lists", parameter="messages")
    is_batch = bool(value) and all(isinstance(conversation, list) for conversation in value)
    return _read(value if is_batch or not value else [value], max_images)


def _read(items: list[object], max_images: int) -> list[bytes]:
    if not items:
        raise NoImages("there is no image in the body")
    if len(items) > max_images:
        raise too_many_images(max_images)
    return [_decode(_image_of(item, index), index) for index, item in enumerate(items)]


def _image_of(item: object, index: int) -> object:
    """The one image of an item, not decoded yet."""
    if isinstance(item, str):
        return item
    parsed = _parse(item)
    if parsed.others or parsed.texts > 1 or (parsed.texts and not parsed.images):
        raise _images_only(index)
    if len(parsed.images) > 1:
        raise MalformedBody(f"image {index}: {len(parsed.images)} images are in one item: send one each", image=index)
    if not parsed.images:
        raise MalformedBody(f"image {index} is in no shape that is known: {IMAGE_SHAPES}", image=index)
    return parsed.images[0]


def _parse(item: object) -> _Item:
    """The parts of a message, of a conversation, or of an item that is a part itself."""
    parsed = _Item()
    for message in item if isinstance(item, list) else [item]:
        content = message.get("content", message) if isinstance(message, dict) else message
        for part in content if isinstance(content, list) else [content]:
            _add_part(parsed, part)
    return parsed


def _add_part(parsed: _Item, part: object) -> None:
    if part is None:
        return
    if isinstance(part, str):
        if part[:5].lower() == "data:":
            parsed.images.append(part)
        else:
            parsed.texts += bool(part.strip())
    elif isinstance(part, dict):
        images = [part[key] for key in IMAGE_KEYS if part.get(key) is not None]
        text = part.get("text")
        parsed.images += images
        parsed.texts += text is not None and (not isinstance(text, str) or bool(text.strip()))
        # A part that names another kind: {"type": "input_audio", …}
        parsed.others += not images and text is None and "type" in part
    else:
        parsed.others += 1


def _decode(image: object, index: int) -> bytes:
    """The bytes of an image in base64, in a data URI, or in {"url": …}."""
    if isinstance(image, dict):
        image = image.get("url")
    if not isinstance(image, str) or image.lstrip()[:5].lower() == "data:" or "://" in image.lstrip()[:16]:
        return read_base64_image(image, f"image {index}", index)
    # Base64 has line breaks at most; blanks would be skipped, and a sentence could pass for base64.
    text = image.strip()
    if " " in text or "\t" in text:
        raise _images_only(index)
    try:
        data = read_base64_image(text, f"image {index}", index)
    except MalformedBody as error:
        raise _images_only(index) from error
    if len(data) < SMALLEST_IMAGE:
        raise _images_only(index)
    return data


def _images_only(index: int) -> ImagesOnly:
    return ImagesOnly(f"input {index} is no image, and {IMAGES_ONLY}", image=index)
