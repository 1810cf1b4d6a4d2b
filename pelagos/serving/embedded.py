"""A server in threads of this process, for measurements and tests."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ResourceError
from pelagos.serving.app import make_app
from pelagos.serving.bridge import EngineLike
from pelagos.serving.config import ServingConfig
from pelagos.serving.server import DrainingServer, open_socket
from pelagos.serving.state import Server

T = TypeVar("T")
CALL_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Embedded:
    url: str
    server: Server
    loop: asyncio.AbstractEventLoop

    def call(self, work: Callable[[], T]) -> T:
        """What ``work`` gives in the server's event loop."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(CALL_SECONDS)


@contextmanager
def serving(engine: EngineLike, tokenizer: Tokenizer, config: ServingConfig) -> Iterator[Embedded]:
    """Serve an engine that was not started; at the end the server is stopped and the engine closed.

    Raises ResourceError if the server does not start.
    """
    server = Server(engine, tokenizer, config)
    listener = open_socket(config.host, config.port)
    http = DrainingServer(make_app(server), server)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        await http.serve(sockets=[listener])

    def work() -> None:
        with asyncio.Runner(loop_factory=http.config.get_loop_factory()) as runner:
            runner.run(run())

    thread = threading.Thread(target=work, name="pelagos-server", daemon=True)
    server.warm_up()
    engine.start()
    thread.start()
    try:
        while not http.started:
            if not thread.is_alive():
                raise ResourceError("the server did not start: its log says why")
            time.sleep(0.01)
        port = listener.getsockname()[1]
        yield Embedded(url=f"http://{config.host}:{port}", server=server, loop=loops[0])
    finally:
        http.should_exit = True
        thread.join()
        engine.close()
        listener.close()
