"""The page at `/`: HTML, CSS, ES modules and pictures of the folder `service/page`, for browsers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from service.api.responses import names_type

FOLDER = Path(__file__).parents[1] / "page"
HTML = "text/html"
MEDIA_TYPES = {
    ".html": f"{HTML}; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
}
CONTENT_SECURITY_POLICY = "default-src 'self'; img-src 'self' blob: data:"


@dataclass(frozen=True)
class PageFile:
    """One file of the page."""

    content: bytes
    media_type: str
    etag: str


class Page:
    """Answers requests for the page and its files; they need no key.

    Attributes:
        files: the files by their path relative to the folder, read once.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Reads all files of `folder` that a browser asks for."""
        self.files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.suffix in MEDIA_TYPES
        }

    def add_routes(self, app: FastAPI) -> None:
        """Adds the routes to `app`; OpenAPI does not describe them."""
        app.add_api_route("/", self.root, include_in_schema=False)
        app.add_api_route("/favicon.ico", self.icon, include_in_schema=False)
        app.add_api_route("/page/{path:path}", self.file, include_in_schema=False)

    async def root(self, request: Request) -> Response:
        """The page for a client whose Accept names HTML, as browsers do; others are led to the API's description."""
        if names_type(request.headers.get("accept", ""), HTML):
            response = self._answer(request, "index.html")
        else:
            response = RedirectResponse("docs")
        response.headers["vary"] = "Accept"
        return response

    async def icon(self, request: Request) -> Response:
        """The icon that browsers ask for where a document names none, as /docs does."""
        return self._answer(request, "favicon.ico")

    async def file(self, request: Request, path: str) -> Response:
        """One file of the page."""
        if path not in self.files:
            raise HTTPException(404)
        return self._answer(request, path)

    def _answer(self, request: Request, path: str) -> Response:
        """A file, or 304 if the browser has it (RFC 9110, section 13.1.2)."""
        file = self.files[path]
        headers = {
            "etag": file.etag,
            "cache-control": "no-cache",  # keep it, and ask each time whether it has changed
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "x-content-type-options": "nosniff",
        }
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if file.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:24]}"')
