"""What every request passes: an id, who asks and whether they may, one line in the log. Plain ASGI."""

import json
import logging
import re
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pelagos.common.log import request_scope
from pelagos.serving.auth import Keys, bearer_of
from pelagos.serving.config import is_loopback
from pelagos.serving.errors import ApiError, Dialect, reply
from pelagos.serving.state import Call, Server, new_id
from pelagos.serving.tracing import span

logger = logging.getLogger(__name__)

SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Paths that need no key: they say nothing about requests. So do the files of the page, which asks for the key itself.
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json"})


class Entrance:
    """Gives every HTTP request its ``Call``, in ``scope["call"]``; turns errors into answers; writes the log."""

    def __init__(
        self, app: ASGIApp, server: Server, keys: Keys | None, tracer: Any, page_paths: frozenset[str]
    ) -> None:
        self._app = app
        self._server = server
        self._keys = keys
        self._tracer = tracer
        self._open_paths = OPEN_PATHS | page_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        call_id = given if SAFE_ID.fullmatch(given) else new_id("req_")
        call = Call(id=call_id, dialect=_dialect(scope["path"], headers), path=scope["path"])
        scope["call"] = call
        around = span(self._tracer, scope["method"], call.path, headers, call.notes, call.stations)
        with request_scope(call.id), around:
            await self._serve(scope, receive, send, call, headers)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, call: Call, headers: dict[str, str]) -> None:
        started = time.perf_counter()
        status = 0

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", call.id.encode())]
            await send(message)

        try:
            self._admit(scope, call, headers)
            await self._app(scope, receive, noted_send)
        except Exception as error:
            if status:
                raise
            await send_error(error, call, noted_send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", None) or "other"
            self._server.watch.responded(path, status)
            call.notes |= {"status": status, "seconds": round(time.perf_counter() - started, 4)}
            level = logging.DEBUG if call.path in self._open_paths or path == "other" else logging.INFO
            logger.log(
                level, "%s %s %d", scope["method"], call.path, status, extra={**call.notes, "key": call.key or None}
            )

    def _admit(self, scope: Scope, call: Call, headers: dict[str, str]) -> None:
        """Raise ApiError unless this caller may ask."""
        if self._keys is None:
            self._check_local(headers)
        elif call.path not in self._open_paths and scope["method"] != "OPTIONS":
            call.key = self._keys.name_of(bearer_of(headers))

    def _check_local(self, headers: dict[str, str]) -> None:
        """Without keys a web page of somebody else must not be able to use the server through its reader's browser."""
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if not is_loopback(host) and host != self._server.config.host:
            raise ApiError(
                403, f"the host {host[:100]!r} is not this server: without API keys it answers to localhost alone"
            )
        origin = headers.get("origin")
        if origin is None or origin in self._server.config.cors_origins or "*" in self._server.config.cors_origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(403, f"the web origin {origin[:100]!r} may not use this server: allow it with --cors-origin")


async def send_error(error: BaseException, call: Call, send: Send) -> None:
    """An error as a whole response."""
    answer = reply(error, call.dialect, call.id)
    data = json.dumps(answer.body, ensure_ascii=False).encode(errors="replace")
    headers = {"content-type": "application/json", "content-length": str(len(data)), **answer.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    await send({"type": "http.response.body", "body": data})


def _dialect(path: str, headers: dict[str, str]) -> Dialect:
    """Which library the caller seems to have."""
    if path.startswith("/anthropic") or "/messages" in path or "anthropic-version" in headers:
        return "anthropic"
    return "openai"
