"""The description of the service, for GET /info and `mae info`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from model.engines.base import EngineInfo
from service.connection_limit import DEFAULT_CONNECTIONS
from service.inference.searcher import IndexInfo
from service.settings import Settings


def describe(info: EngineInfo, settings: Settings, index: IndexInfo | None = None) -> dict[str, Any]:
    """Model, version, engine (with parity and versions of libraries), index, and every limit in force, for JSON."""
    return {
        "model": info.model_id,
        "version": version("mae-serve"),
        "engine": info.model_dump(mode="json"),  # a batch size that is a key becomes text
        "index": None if index is None else index.model_dump(),
        "limits": {
            "max_batch": info.preferred_batch,
            "max_delay_ms": settings.max_delay_ms,
            "queue_images": settings.queue_images,
            "max_inflight_mb": settings.max_inflight_mb,
            "decode_threads": settings.decode_threads,
            "max_body_mb": settings.max_body_mb,
            "max_pixels": settings.max_pixels,
            "max_decode_mb": settings.max_decode_mb,
            "max_images": settings.max_images,
            "request_timeout_s": settings.request_timeout_s,
            "header_timeout_s": settings.header_timeout_s,
            "body_stall_s": settings.body_stall_s,
            "drain_timeout_s": settings.drain_timeout_s,
            "cache_mb": settings.cache_mb,
            "max_connections": settings.max_connections or DEFAULT_CONNECTIONS,
            "key_max_requests": settings.key_max_requests,
            "key_images_per_s": settings.key_images_per_s,
        },
    }
