"""The header `traceparent` of W3C Trace Context, by which the spans of several services form one trace."""

from __future__ import annotations

import re

# https://www.w3.org/TR/trace-context/: version, id of the trace, id of the caller's span, flags.
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
LENGTH = 55


def parse_traceparent(header: str) -> str:
    """The `traceparent` in `header`, or an empty string where that is not valid.

    Versions to come may append fields; only those that are known today are taken.
    """
    known, rest = header[:LENGTH], header[LENGTH:]
    if not TRACEPARENT.fullmatch(known) or (rest and (known.startswith("00") or not rest.startswith("-"))):
        return ""
    return known
