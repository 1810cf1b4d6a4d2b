"""A server with the API that the page and ``connect`` use, whose answers follow a script: no model, no engine.

The last message of a chat chooses the script by its first word, such as ``#broken``; see SCRIPTS. Everything the server
was asked is kept in ``requests``.
"""

import json
import mimetypes
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

STATIC = Path(__file__).parents[2] / "pelagos" / "serving" / "static"
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"

THINKING = "The user asks about caches. I should say what they are for, and show a small one. "
ANSWER = """A **cache** keeps results near, so that the same work is *not done twice*.

## How it works

1. Look the key up.
2. If it is there, that is a *hit*: return the value.
3. If not, compute, store, and drop the oldest entry when the cache is full.

```python
from collections import OrderedDict

class Cache:
    def __init__(self, size: int = 128) -> None:
        self._entries: OrderedDict[str, int] = OrderedDict()  # oldest first
        self._size = size

    def get(self, key: str, compute) -> int:
        if key not in self._entries:
            self._entries[key] = compute(key)
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return self._entries[key]
```

| place | time for 1 kB | size |
|:--|--:|--:|
| L1 cache | 1 ns | 32 kB |
| memory | 100 ns | 256 GB |
| SSD | 100 µs | 4 TB |

> Measure first: a cache that is never hit only costs.

More in [the documentation](https://example.org/caches). The hit rate is $h = n_{hit} / n_{all}$.
"""
HOSTILE = """<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2">

[run](javascript:window.pwned=3) [data](data:text/html,<script>window.pwned=4</script>) [odd](java\tscript:alert(1))
![tracker](https://tracker.example/pixel.png) <iframe src="https://evil.example"></iframe>

| <b onmouseover="window.pwned=5">x</b> | y |
|---|---|
| `<svg onload=window.pwned=6>` | [z](vbscript:x) |

```html"><script>window.pwned = 7</script>
<img src=x onerror="window.pwned = 8">
"""

Send = Callable[[str], None]


def chunk(delta: dict[str, Any] | None = None, **fields: Any) -> str:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": fields.pop("finish_reason", None)}
    return "data: " + json.dumps({"id": "x", "model": "nano", "choices": [choice], **fields}) + "\n\n"


def usage(prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
        "pelagos": {"note": "the system prompt was in the cache"},
    }


def pieces(text: str, size: int = 6) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def ending(prompt: int, completion: int, reasoning: int = 0, finish_reason: str = "stop") -> str:
    counts = usage(prompt, completion, cached=prompt // 2, reasoning=reasoning)
    return chunk(finish_reason=finish_reason, usage=counts) + "data: [DONE]\n\n"


class Connection:
    """What a script writes to; ``wait`` takes as long as the server's ``pace`` says."""

    def __init__(self, handler: "Handler", body: dict[str, Any]) -> None:
        self.body = body
        self._handler = handler

    @property
    def thinking(self) -> bool:
        return bool(self.body.get("thinking", {}).get("type") != "disabled")

    def send(self, text: str) -> None:
        self._handler.wfile.write(text.encode())
        self._handler.wfile.flush()

    def wait(self, steps: float = 1) -> None:
        time.sleep(steps * self._handler.server.pace)


def plain(connection: Connection, thinking: str = THINKING, answer: str = ANSWER, finish_reason: str = "stop") -> None:
    connection.send(chunk({"role": "assistant", "reasoning_content": ""}))
    num_thinking = 0
    if connection.thinking:
        for piece in pieces(thinking):
            connection.send(chunk({"reasoning_content": piece}))
            connection.wait()
            num_thinking += 1
    for piece in pieces(answer):
        connection.send(chunk({"content": piece}))
        connection.wait()
    connection.send(ending(1200, num_thinking + len(answer) // 6, num_thinking, finish_reason))


def reading(connection: Connection) -> None:
    for num_read in range(0, 50_001, 5_000):
        connection.send(f": reading {num_read} of 50000 tokens\n\n")
        connection.wait(20)
    plain(connection, answer="I have read it all.")


def broken(connection: Connection) -> None:
    connection.send(chunk({"content": "The first half of an answer, "}))
    connection.wait(5)
    connection.send(chunk({"content": "and then"}))


def failing(connection: Connection) -> None:
    connection.send(chunk({"content": "Some words."}))
    connection.send('data: {"error": {"message": "the device ran out of memory"}}\n\n')


def endless(connection: Connection) -> None:
    for number in range(100_000):
        connection.send(chunk({"content": f"word {number} "}))
        connection.wait()


def cut(connection: Connection) -> None:
    if connection.body["messages"][-1].get("prefix"):
        plain(connection, answer="and this is the rest.")
    else:
        plain(connection, answer="This is the start, ", finish_reason="length")


SCRIPTS: dict[str, Callable[[Connection], None]] = {
    "#reading": reading,
    "#broken": broken,
    "#failing": failing,
    "#endless": endless,
    "#cut": cut,
    "#hostile": lambda connection: plain(connection, answer=HOSTILE),
    "#short": lambda connection: plain(connection, thinking="Short. ", answer="Yes."),
    "#echo": lambda connection: plain(connection, answer=json.dumps(connection.body["messages"])),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a body ends with its connection, so that a script can break it off
    server: "FakeServer"
    SECRET: ClassVar[str] = "right"

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self.allowed():
                models = [
                    {"id": name, "object": "model", "context_length": n} for name, n in self.server.models.items()
                ]
                self.answer(200, {"object": "list", "data": models})
        else:
            self.static()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({"path": self.path, "body": body, "key": self.headers.get("Authorization")})
        if not self.allowed():
            return
        if self.path == "/tokenize":
            self.answer(200, {"count": len(body["text"].split()), "ids": []})
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        else:
            self.answer(404, {"error": {"message": "no such address"}})

    def chat(self, body: dict[str, Any]) -> None:
        users = [message["content"] for message in body["messages"] if message["role"] == "user"]
        word = users[-1].split()[0]
        if word == "#busy":
            self.answer(429, {"error": {"message": "the queue is full"}}, {"Retry-After": "3"})
            return
        if word == "#refused":
            self.answer(400, {"error": {"message": "temperature must be from 0 to 2, got 7."}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            SCRIPTS.get(word, plain)(Connection(self, body))
            self.server.num_finished += 1
        except (BrokenPipeError, ConnectionResetError):
            self.server.num_left += 1

    def allowed(self) -> bool:
        if not self.server.locked or self.headers.get("Authorization") == f"Bearer {self.SECRET}":
            return True
        self.answer(401, {"error": {"message": "Your api key: ****ong1 is invalid", "type": "authentication_error"}})
        return False

    def static(self) -> None:
        name = self.path.partition("?")[0].lstrip("/") or "index.html"
        path = STATIC / name
        if ".." in name or not path.is_file():
            self.answer(404, {"error": {"message": "no such file"}})
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", mimetypes.guess_type(name)[0] or "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(data)

    def answer(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    """Use it in a ``with`` block. ``pace``: seconds between pieces. ``locked``: wants the key ``right``."""

    daemon_threads = True

    def __init__(self, *, pace: float = 0.0, locked: bool = False, models: dict[str, int] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pace = pace
        self.locked = locked
        self.models = models or {"nano": 131072}
        self.requests: list[dict[str, Any]] = []
        self.num_finished = self.num_left = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of all chat requests so far."""
        return [request["body"] for request in self.requests if request["path"] == "/v1/chat/completions"]

    def __enter__(self) -> "FakeServer":
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
