"""Server-sent events: the bytes of one, and the response that sends them while it listens for the client to leave."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

# No proxy may hold events back or change them.
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache, no-transform"}
NO_BUFFER = {"x-accel-buffering": "no"}


def event(data: Mapping[str, Any] | str, name: str | None = None) -> bytes:
    """One event. JSON has no raw line ends, so a text cannot end an event early."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode(errors="replace")


def comment(text: str) -> bytes:
    """A line that clients skip, and that shows them that the server is alive."""
    return f": {text}\n\n".encode()


class EventStream:
    """A streamed response: an ASGI application. The headers go out at once.

    ``chunks`` is closed when it ends, when the client leaves, and when the server stops this request.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self._chunks = chunks
        self._headers = {**HEADERS, **NO_BUFFER, **headers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        sender = asyncio.ensure_future(self._send(raw, send))
        listener = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait((sender, listener), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sender_done = sender.done()
            await stop(listener)
            await stop(sender)
        if sender_done:
            sender.result()

    async def _send(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def left(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def stop(task: "asyncio.Future[Any]") -> None:
    """End a task and wait until it has cleaned up; what it ended in is the business of who made it."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
