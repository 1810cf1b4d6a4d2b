"""The process: a socket, uvicorn, and an end that leaves no request without its last event."""

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from pelagos.common.errors import ResourceError, UsageError
from pelagos.serving.state import Server

logger = logging.getLogger(__name__)

# What connections may take after the engine has ended every request.
GRACE_SECONDS = 5
BACKLOG = 2048


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ResourceError if the port is taken, UsageError if it cannot be had at all."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except socket.gaierror as error:
        raise UsageError(f"host {host} is not an address of this machine: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ResourceError(
                f"port {port} on {host} is taken: stop what listens there, or give another --port (0 takes a free one)"
            ) from error
        raise UsageError(f"port {port} on {host} cannot be listened on: {os.strerror(error.errno or 0)}") from error


class DrainingServer(uvicorn.Server):
    """Ends in this order: no new connections, every running request to its end or cancelled, connections, process.

    A first SIGTERM or Ctrl-C begins that, a second one cuts it short.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        seconds = server.config.drain_seconds + GRACE_SECONDS
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=int(seconds) + 1,
                timeout_keep_alive=75,
            )
        )
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        server = self._server
        server.is_draining = True
        running = server.watch.num_running
        if running:
            logger.info("stopping: %d requests have %g seconds to end", running, server.config.drain_seconds)
        # A thread that the interpreter does not wait for, should the second signal come.
        drain = threading.Thread(target=server.engine.drain, args=(server.config.drain_seconds,), daemon=True)
        drain.start()
        await super().shutdown(sockets)
        while drain.is_alive() and not self.force_exit:
            await asyncio.sleep(0.02)
        tasks = [task for _, task in server.background.values()]
        if tasks and not self.force_exit:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        server.close_stores()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a clean stop is a success: the signal is not raised again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(app: ASGIApp, server: Server, listener: socket.socket) -> None:
    """Serve until a signal comes, then end every request and return."""
    http = DrainingServer(app, server)
    try:
        http.run(sockets=[listener])
    finally:
        server.engine.close()
