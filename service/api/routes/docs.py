"""GET /docs: Swagger's page, whose links are relative, so that it works under any path prefix."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

router = APIRouter(include_in_schema=False)
STATIC = "static-offline-docs"
"""The folder of Swagger's files, as fastapi-offline serves it."""


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page by which the API is tried."""
    raw_path: bytes = request.scope.get("raw_path", b"")
    # /docs/ is served too, and links on it are relative to a path that is longer.
    root = "../" * (len(raw_path) - len(raw_path.rstrip(b"/")))
    return get_swagger_ui_html(
        openapi_url=f"{root}openapi.json",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root}{STATIC}/favicon.png",
    )
