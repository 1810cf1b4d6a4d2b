"""A live server on a free loopback port, over a scripted engine, with a small vocabulary that has V4's marks."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from live_server import Live
from scripted_engine import Script, ScriptedEngine

from pelagos.chat.tokenizer import EOS, Tokenizer
from pelagos.serving.app import make_app
from pelagos.serving.config import ServingConfig
from pelagos.serving.server import DrainingServer
from pelagos.serving.state import Server

MARKS = (
    *("<｜begin▁of▁sentence｜>", EOS, "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>", "<think>", "</think>"),
    *("｜DSML｜", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """V4's special tokens, then a byte-level BPE, 400 entries together. Its ends are those of the preset tiny."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[tokenizers.AddedToken(mark, normalized=False) for mark in MARKS],
        show_progress=False,
    )
    library.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer.from_file(path)


@pytest.fixture(scope="session")
def ids_of(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The ids of a model's output in which the marks are special tokens, such as "</think>hi"."""

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        while text:
            places = [(text.find(mark), mark) for mark in MARKS if mark in text]
            start, mark = min(places, default=(len(text), ""))
            ids += tokenizer.encode(text[:start])
            ids += [tokenizer.encode_special(mark)] if mark else []
            text = text[start + len(mark) :]
        return ids

    return encode


@pytest.fixture(scope="session")
def launch(tokenizer: Tokenizer, ids_of: Callable[[str], list[int]]) -> Iterator[Callable[..., Live]]:
    """Starts servers; all of them are stopped at the end of the session."""
    stops: list[Callable[[], None]] = []

    def start(*, max_positions: int = 1 << 16, max_waiting: int = 1000, engine: Any = None, **options: Any) -> Live:
        engine = engine or ScriptedEngine(
            lambda request: Script(answers=[[tokenizer.eos_id]]),
            vocab_size=tokenizer.vocab_size,
            max_positions=max_positions,
            max_waiting=max_waiting,
        )
        engine.start()
        options = {"aliases": ("other-name",), "keep_alive_seconds": 0.2, **options}
        server = Server(engine, tokenizer, ServingConfig(port=0, **options))
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        http = DrainingServer(make_app(server), server)
        loops: list[asyncio.AbstractEventLoop] = []

        async def run() -> None:
            loops.append(asyncio.get_running_loop())
            await http.serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while not http.started:
            time.sleep(0.005)

        def stop() -> None:
            http.should_exit = True
            live.stop = lambda: None
            thread.join(10)
            assert not thread.is_alive()
            live.http.close()
            engine.close()

        stops.append(lambda: live.stop())
        live = Live(engine, server, ids_of, port)
        live.stop, live.loop = stop, loops[0]
        live.ask_to_stop = lambda: setattr(http, "should_exit", True)
        return live

    yield start
    for stop in stops:
        stop()


@pytest.fixture(scope="session")
def shared(launch: Callable[..., Live]) -> Live:
    return launch()


@pytest.fixture
def live(shared: Live) -> Iterator[Live]:
    """The server that most tests share; each ends with no request left and as many ends as requests."""
    shared.engine.pace = 0.0
    yield shared
    shared.wait_idle()
    assert set(shared.engine.finished.values()) <= {1}
    assert len(shared.engine.finished) == len(shared.engine.requests)
