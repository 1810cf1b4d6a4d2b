"""What the server costs beside the engine: the same streams through HTTP and through the engine alone, in turns.

    python benchmarks/serving_cost.py [MODEL] [--streams 16] [--rounds 7] [--out FILE.jsonl]

MODEL: a folder or a name, default nano. In each round so many prompts are read and answered side by side, through
/v1/completions, through /v1/chat/completions, and by an engine without a server, which gets the same kinds of prompts,
since what is written decides which experts work; all in turns on one model in one process, prompts new each time.
Clients are one process of plain sockets, which takes little of the machine; that is in the figures. Prints medians and
their ratios, and the time to the first byte of the idle server.
"""

import argparse
import json
import logging
import random
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from machine import machine_record

from pelagos.chat.byte_vocabulary import write_byte_tokenizer
from pelagos.chat.render import render
from pelagos.chat.tokenizer import IncrementalDecoder, Tokenizer
from pelagos.cli.options import use_threads
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Request
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.serving.config import ServingConfig
from pelagos.serving.embedded import serving

PROMPT_WORDS = 40
IDLE_REQUESTS = 20


class Work:
    """The same requests for both: as HTTP bodies, and as the engine takes them."""

    def __init__(self, tokenizer: Tokenizer, streams: int, tokens: int) -> None:
        self.tokenizer, self.streams, self.tokens = tokenizer, streams, tokens
        self._rng = random.Random(0)

    def prompt(self) -> str:
        return " ".join("".join(self._rng.choices("abcdefghij", k=4)) for _ in range(PROMPT_WORDS))

    def body(self, path: str) -> dict[str, Any]:
        """Ends nowhere but at its last token: the end of an answer is forbidden."""
        body: dict[str, Any] = {"model": "pelagos", "stream": True, "temperature": 0, "max_tokens": self.tokens}
        body["logit_bias"] = {str(self.tokenizer.eos_id): -100}
        if path.endswith("chat/completions"):
            return {**body, "messages": [{"role": "user", "content": self.prompt()}], "thinking": {"type": "disabled"}}
        return {**body, "prompt": self.prompt()}

    def request(self, chat: bool) -> Request:
        """With its text, which the server makes by itself for chats."""
        if chat:
            messages = [{"role": "user", "content": self.prompt()}]
            ids: Sequence[int] = render(messages, self.tokenizer, thinking=False).token_ids
        else:
            ids = self.tokenizer.encode(self.prompt())
        bias = ((self.tokenizer.eos_id, -100.0),)
        params = SamplingParams(temperature=0.0, max_tokens=self.tokens, logit_bias=bias)
        return Request(prompt_ids=ids, params=params, decoder=lambda: IncrementalDecoder(self.tokenizer))


# --- the clients ---


def post(address: tuple[str, int], path: str, body: dict[str, Any]) -> socket.socket:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(address)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    return connection


def read_all(address: tuple[str, int], path: str, bodies: list[dict[str, Any]]) -> tuple[float, int]:
    """Seconds until every stream has ended, and how many bytes came. Raises RuntimeError if one is not whole."""
    started, num_bytes = time.perf_counter(), 0
    last: dict[socket.socket, bytes] = {}
    with selectors.DefaultSelector() as selector:
        for body in bodies:
            connection = post(address, path, body)
            last[connection] = b""
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                data = connection.recv(1 << 16)
                num_bytes += len(data)
                if data:
                    last[connection] = (last[connection] + data)[-400:]
                else:
                    selector.unregister(connection)
                    connection.close()
    if broken := [end for end in last.values() if b"data: [DONE]" not in end]:
        raise RuntimeError(f"a stream was cut: {broken[0]!r}")
    return time.perf_counter() - started, num_bytes


def first_byte(address: tuple[str, int], path: str, body: dict[str, Any]) -> float:
    started = time.perf_counter()
    with post(address, path, body) as connection:
        connection.recv(1)
        seconds = time.perf_counter() - started
        while connection.recv(1 << 16):
            pass
    return seconds


def serve_clients(url: str) -> None:
    """The other process: a line of JSON in, a line out."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    for line in sys.stdin:
        name, path, bodies = json.loads(line)
        seconds = read_all(address, path, bodies)[0] if name == "all" else first_byte(address, path, bodies[0])
        print(seconds, flush=True)


# --- the measurement ---


def engine_alone(model: Model, work: Work, chat: bool) -> float:
    engine = Engine(model, EngineConfig(max_running=work.streams))
    requests = [work.request(chat) for _ in range(work.streams)]
    started = time.perf_counter()
    results = engine.generate(requests)
    seconds = time.perf_counter() - started
    assert all(len(result.answers[0].tokens) == work.tokens for result in results)
    return seconds


def measure(model: Model, work: Work, rounds: int) -> dict[str, Any]:
    paths = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
    engine = Engine(model, EngineConfig(max_running=work.streams))
    with serving(engine, work.tokenizer, ServingConfig(port=0)) as running:
        command = [sys.executable, __file__, "--clients", running.url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def ask(name: str, path: str, number: int) -> float:
                line = json.dumps([name, path, [work.body(path) for _ in range(number)]])
                print(line, file=process.stdin, flush=True)
                return float(process.stdout.readline())

            turns: dict[str, Callable[[], float]] = {
                "completions": lambda: ask("all", paths["completions"], work.streams),
                "completions, engine alone": lambda: engine_alone(model, work, chat=False),
                "chat": lambda: ask("all", paths["chat"], work.streams),
                "chat, engine alone": lambda: engine_alone(model, work, chat=True),
            }
            for turn in turns.values():
                turn()  # once for nothing
            seconds: dict[str, list[float]] = {name: [] for name in turns}
            for _ in range(rounds):
                for name, turn in turns.items():
                    seconds[name].append(turn())
            idle = [ask("first", paths["chat"], 1) for _ in range(IDLE_REQUESTS)]
            process.stdin.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "streams": work.streams,
        "tokens": work.tokens,
        "seconds": seconds,
        "tokens_per_second": {name: work.streams * work.tokens / value for name, value in medians.items()},
        "cost": {name: medians[name] / medians[f"{name}, engine alone"] for name in paths},
        "idle_first_byte_ms": {"median": 1000 * statistics.median(idle), "max": 1000 * max(idle)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="nano", metavar="MODEL")
    parser.add_argument("--streams", type=int, default=16, help="at once")
    parser.add_argument("--tokens", type=int, default=1024, help="of each answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    parser.add_argument("--clients", default=None, metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clients is not None:
        serve_clients(options.clients)
        return 0
    logging.getLogger("pelagos.serving").setLevel(logging.ERROR)
    use_threads(options.threads)
    place = model_place(options.model)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_folder(place) if Path(place).is_dir() else write_byte_tokenizer(Path(folder))
        report = measure(Model.load(place), Work(tokenizer, options.streams, options.tokens), options.rounds)
    report = {"model": options.model, **report, "machine": machine_record(options.threads)}
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")
    for name, rate in report["tokens_per_second"].items():
        cost = f", {report['cost'][name]:.2f} times the engine's time" if name in report["cost"] else ""
        print(f"{name:26} {rate:8,.0f} tokens/s{cost}")
    print(
        "first byte of the idle server: {median:.1f} ms (median), {max:.1f} (most)".format(
            **report["idle_first_byte_ms"]
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
