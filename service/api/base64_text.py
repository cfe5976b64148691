"""Base64 as people write it."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

URL_SAFE = bytes.maketrans(b"-_", b"+/")
WHITE_SPACE = b" \t\r\n\v\f"


def encode_base64(data: bytes) -> str:
    """`data` in the standard alphabet, with padding."""
    return base64.b64encode(data).decode("ascii")


def decode_base64(text: str) -> bytes:
    """The bytes that `text` stands for.

    The text may have white space anywhere, the URL-safe alphabet (RFC 4648, section 5), no padding, and characters that
    are percent-encoded.

    Raises:
        ValueError: the text is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)  # nearly always: the steps below would copy the text four times
    except ValueError:  # binascii.Error is one
        pass
    try:
        data = unquote_to_bytes(text) if "%" in text else text.encode("ascii")
    except UnicodeEncodeError:
        raise ValueError("it has characters outside ASCII") from None
    data = data.translate(URL_SAFE, delete=WHITE_SPACE)
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
