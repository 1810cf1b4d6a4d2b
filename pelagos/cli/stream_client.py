"""A client that reads event streams and notes when each event came: for measurements, without a library that takes time
of its own."""

import asyncio
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from pelagos.common.errors import ResourceError, UsageError

CONNECT_SECONDS = 10.0
MAX_ERROR_BYTES = 4096
SYSTEM_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a server is. ``prefix``: its path without a slash at the end."""

    host: str
    port: int
    tls: bool
    prefix: str
    key: str | None


def target_of(url: str, key: str | None = None) -> Target:
    """The parts of a server's URL. Raises UsageError for what is none."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
        raise UsageError(f"url must be that of a server, such as http://127.0.0.1:8000, got {url[:200]!r}")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Target(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=prefix, key=key)


class EventStream:
    """One POST whose answer is a stream of events; an async iterator of the data of each, in an ``async with``.

    ``status`` and ``first_byte`` (``time.perf_counter``) are known inside. Leaving early closes the connection.
    """

    def __init__(self, target: Target, path: str, body: dict[str, Any], *, buffer_bytes: int = 1 << 16) -> None:
        """``buffer_bytes``: what is read ahead of the one who iterates, here and in the operating system."""
        self._target = target
        self._path = path
        self._body = json.dumps(body).encode()
        self._buffer_bytes = buffer_bytes
        self.status = 0
        self.sent = 0.0
        self.first_byte = 0.0

    async def __aenter__(self) -> Self:
        """Send the request and read the head of the response. Raises ResourceError if there is no server, or if it
        refuses; its message says why."""
        target = self._target
        where = f"{target.host}:{target.port}"
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await asyncio.open_connection(
                    target.host,
                    target.port,
                    ssl=ssl.create_default_context() if target.tls else None,
                    limit=self._buffer_bytes,
                )
        except (OSError, TimeoutError) as error:
            raise ResourceError(f"no server answers at {where}: {error or 'it takes too long'}") from error
        connection = self._writer.get_extra_info("socket")
        if self._buffer_bytes < SYSTEM_BUFFER_BYTES:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
        try:
            self.sent = time.perf_counter()
            self._writer.write(self._head() + self._body)
            await self._writer.drain()
            await self._read_head()
            if self.status != 200:
                raise ResourceError(f"{where} refused with {self.status}: {await self._reason()}")
        except (OSError, EOFError, ValueError) as error:
            self._writer.transport.abort()
            raise ResourceError(f"{where} broke off: {error}") from error
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    async def __aiter__(self) -> AsyncIterator[str]:
        """The data of each event, comments left out. Raises ResourceError if the stream breaks off."""
        lines: list[str] = []
        try:
            async for line in self._lines():
                if line.startswith("data:"):
                    lines.append(line[5:].removeprefix(" "))
                elif not line and lines:
                    yield "\n".join(lines)
                    lines = []
        except (OSError, EOFError, ValueError) as error:
            raise ResourceError(f"the stream broke off: {error}") from error

    def _head(self) -> bytes:
        target = self._target
        host = f"[{target.host}]" if ":" in target.host else target.host
        lines = [
            f"POST {target.prefix}{self._path} HTTP/1.1",
            f"Host: {host}:{target.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(self._body)}",
            "Connection: close",
        ]
        if target.key:
            lines.append(f"Authorization: Bearer {target.key}")
        return "\r\n".join([*lines, "", ""]).encode()

    async def _read_head(self) -> None:
        first = await self._reader.readuntil(b"\r\n")
        self.first_byte = time.perf_counter()
        self.status = int(first.split()[1])
        self._is_chunked = False
        while (line := await self._reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "transfer-encoding" and "chunked" in value.lower():
                self._is_chunked = True

    async def _reason(self) -> str:
        data = b""
        async for piece in self._pieces():
            data += piece
            if len(data) > MAX_ERROR_BYTES:
                break
        try:
            return str(json.loads(data)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return data[:200].decode(errors="replace")

    async def _lines(self) -> AsyncIterator[str]:
        rest = b""
        async for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r").decode()

    async def _pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if not self._is_chunked:
            while piece := await self._reader.read(1 << 16):
                yield piece
            return
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            left = size
            while left:
                piece = await self._reader.read(min(left, 1 << 16))
                if not piece:
                    raise EOFError("the end did not come")
                left -= len(piece)
                yield piece
            await self._reader.readuntil(b"\r\n")
