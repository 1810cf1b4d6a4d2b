"""The files of the chat page, as they lie in ``static``: read once, sent with their type, an ETag and a strict policy.

A server without them is a server without a page, and says so at ``/``.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

FOLDER = Path(__file__).with_name("static")
# Types that browsers insist on; mimetypes would ask the machine.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8",
}
# The page loads and calls nothing but this server, and runs no code that stands in its HTML.
POLICY = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAFETY = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class PageFile:
    data: bytes
    media_type: str
    etag: str


def load_page(folder: Path = FOLDER) -> dict[str, PageFile]:
    """The files by URL path; ``index.html`` is ``/`` too. Empty if there is no folder."""
    files = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix in TYPES and path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
            file = PageFile(data=data, media_type=TYPES[path.suffix], etag=etag)
            files[f"/{path.relative_to(folder).as_posix()}"] = file
    if "/index.html" in files:
        files["/"] = files["/index.html"]
    return files


def page_routes(files: dict[str, PageFile]) -> list[BaseRoute]:
    routes: list[BaseRoute] = [Route(path, _endpoint(file), methods=["GET"]) for path, file in files.items()]
    return routes if "/" in files else [*routes, Route("/", _no_page, methods=["GET"])]


def _endpoint(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    async def send(http: Request) -> Response:
        headers = {**SAFETY, "etag": file.etag, "cache-control": "no-cache"}
        if file.etag in http.headers.get("if-none-match", "").replace("W/", "").split(", "):
            return Response(status_code=304, headers=headers)
        return Response(file.data, media_type=None, headers={**headers, "content-type": file.media_type})

    return send


async def _no_page(http: Request) -> Response:
    """There is no page in this installation; the API is here all the same."""
    return JSONResponse({"name": "pelagos", "api": "/v1", "openapi": "/openapi.json"}, headers=SAFETY)
