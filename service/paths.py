"""The paths of the service, as settings, connections and middleware need them without knowing the routes."""

from __future__ import annotations

import re
from collections.abc import Iterable

OWN_SEGMENTS = frozenset(
    [
        "anomaly",
        "classify",
        "docs",
        "embed",
        "embeddings",
        "explain",
        "favicon.ico",
        "info",
        "invocations",
        "livez",
        "metrics",
        "models",
        "openapi.json",
        "page",
        "ping",
        "readyz",
        "reconstruct",
        "search",
        "static-offline-docs",
        "v1",
        "v2",
    ]
)
"""The first segments of the paths of this service, which ROOT_PATH and PREDICT_ROUTE must leave free."""
PROBES = frozenset(["/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"])
"""The paths that supervisors ask whether the service lives and takes requests, beside HEALTH_ROUTE."""
KEYABLE = frozenset(
    [
        "/",
        "/docs",
        "/favicon.ico",
        "/metrics",
        "/models",
        "/openapi.json",
        "/page",
        "/static-offline-docs",
        "/v1/models",
        "/v2",
    ]
)
"""The paths that KEYED_PATHS can name: with what lies below them, all that needs no key by default and is no probe."""
VERTEX_ROUTES = "/v1/endpoints/"
"""The beginning of the paths that Vertex AI takes by default."""
ROUTE = re.compile(r"(/[\w.~:@!$&'()*+,;=-]+)+", re.ASCII)


def require_free(path: str) -> None:
    """Raises a ValueError if a route of this service begins with the first segment of `path`."""
    first = path.split("/")[1]
    if first in OWN_SEGMENTS:
        raise ValueError(f"/{first} is a path of the service itself: take another one")


def is_below(path: str, parents: Iterable[str]) -> bool:
    """Whether `path` is one of `parents` or lies below one; nothing lies below "/"."""
    return any(path == parent or (parent != "/" and path.startswith(f"{parent}/")) for parent in parents)
