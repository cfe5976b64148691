"""The log of requests: one message each, with nothing in it that a client could forge or should not have sent."""

from __future__ import annotations

import re
from collections.abc import Collection

HIDDEN = "***"
"""Stands for a parameter that the route does not know: it may be a key, and so may its name."""
MAX_VALUE = 100
"""Most characters of one parameter in the log."""
MAX_QUERY = 1000
"""Most bytes of a query that are looked at."""
OUTSIDE_URL = re.compile(r"[^!-~]")
ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[\w.-]{1,32})?", re.ASCII)


def redact_query(query: bytes, known: Collection[str]) -> str:
    """`query` for log and traces: only the parameters whose names are in `known`, as visible ASCII and cut off."""
    if not query:
        return ""
    parameters = []
    for parameter in query[:MAX_QUERY].decode("latin-1").split("&"):
        if parameter.partition("=")[0] not in known:
            parameter = HIDDEN
        elif len(parameter) > MAX_VALUE:
            parameter = parameter[:MAX_VALUE] + "..."
        parameters.append(parameter)
    return OUTSIDE_URL.sub(lambda character: f"%{ord(character[0]):02X}", "&".join(parameters))


def client_address(client: tuple[str, int] | None) -> str:
    """The address of a client; empty if it has none, as behind a proxy whose X-Forwarded-For holds something else."""
    address = client[0] if client else ""
    return address if ADDRESS.fullmatch(address) else ""
