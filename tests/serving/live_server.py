"""A server that runs, as the tests see it, and what its model may say."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
from scripted_engine import Script, ScriptedEngine

from pelagos.chat.tokenizer import EOS
from pelagos.engine.request import Request
from pelagos.serving.state import Server

DSML = "｜DSML｜"
CALL = (
    f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="weather">\n'
    f'<{DSML}parameter name="city" string="true">Paris</{DSML}parameter>\n'
    f"</{DSML}invoke>\n</{DSML}tool_calls>"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TWO_CITIES = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    },
}


class Live:
    """A running server. ``say`` sets what the engine says; ``http`` is a client of it."""

    def __init__(self, engine: ScriptedEngine, server: Server, ids_of: Callable[[str], list[int]], port: int) -> None:
        self.engine = engine
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.Client(base_url=self.url, timeout=20.0)
        self._ids_of = ids_of
        self.stop: Callable[[], None] = lambda: None
        self.ask_to_stop: Callable[[], None] = lambda: None
        self.loop: asyncio.AbstractEventLoop | None = None

    def say(self, *answers: str, end: bool = True, **options: Any) -> None:
        ids = [self._ids_of(answer + (EOS if end else "")) for answer in answers]
        script = Script(answers=ids, **options)
        self.engine.script = lambda request: script

    def chat(self, content: str = "hi", **fields: Any) -> httpx2.Response:
        body = {"model": "pelagos", "messages": [{"role": "user", "content": content}], **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def run_in_loop(self, work: Callable[[], Any]) -> Any:
        """What ``work`` gives in the server's event loop."""

        async def call() -> Any:
            return work()

        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(5)

    @property
    def last(self) -> Request:
        """The last request that the engine was given."""
        return self.engine.requests[-1]

    def wait_idle(self, seconds: float = 5.0) -> None:
        """Until no request is running, in the engine or in the server."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.engine.stats().num_running and not self.server.watch.num_running:
                return
            time.sleep(0.01)
        raise AssertionError("requests are still running")


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)
