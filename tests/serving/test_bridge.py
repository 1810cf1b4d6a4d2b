"""The flow between the engine's thread and the event loop: pieces as the pace says, and no end that waits."""

import asyncio
import threading
import time
from typing import Any

import pytest

from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Answer, Finished, OnEvent, Request, Times, Tokens, Usage
from pelagos.engine.sampler import Sampled
from pelagos.serving.bridge import Batch, Bell, Flow, next_tick

PIECES, SECONDS = 40, 0.002
END = Finished(
    request_id="id",
    answers=(Answer(tokens=(), text=None, finish_reason="length"),),
    usage=Usage(num_prompt_tokens=1, num_cached=0, num_computed=1, num_generated=PIECES),
    times=Times(started=0.0, first_token=0.0, finished=0.0),
    seed=0,
)


class Writer:
    """An engine that makes PIECES tokens, one every SECONDS, and says them when they are wanted; then the end."""

    model: Any = None

    def add(self, request: Request, on_event: OnEvent | None = None) -> str:
        assert on_event is not None

        def write() -> None:
            kept: list[Sampled] = []
            quiet_until = 0.0
            for number in range(PIECES):
                kept.append(Sampled(token_id=number))
                if time.monotonic() >= quiet_until or number == PIECES - 1:
                    news = Tokens(request_id="id", choice=0, tokens=tuple(kept), text="x" * len(kept))
                    quiet_until = on_event(news) or 0.0
                    kept = []
                time.sleep(SECONDS)
            on_event(END)

        threading.Thread(target=write).start()
        return "id"

    def start(self) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> Any: ...

    def drain(self, timeout: float) -> bool:
        return True

    def close(self) -> None: ...


def read_all(engine: Writer, pace: float) -> list[tuple[float, Batch]]:
    """Every batch and when it came."""

    async def read() -> list[tuple[float, Batch]]:
        request = Request(prompt_ids=[1], params=SamplingParams())
        flow = Flow(engine, [request], max_buffered_tokens=1000, bell=Bell(), pace=lambda: pace)
        flow.start()
        batches = []
        while not flow.is_finished:
            batch = await flow.next_batch(10.0)
            assert batch is not None
            batches.append((time.monotonic(), batch))
        flow.leave()
        return batches

    return asyncio.run(read())


@pytest.mark.parametrize("pace", [0.0, 0.02, 10.0])
def test_every_token_comes_once_in_order(pace: float) -> None:
    batches = read_all(Writer(), pace)
    tokens = [token.token_id for _, batch in batches for news in batch.tokens for token in news.tokens]
    assert tokens == list(range(PIECES))
    assert "".join(news.text for _, batch in batches for news in batch.tokens) == "x" * PIECES
    assert sum(len(batch.finished) for _, batch in batches) == 1


def test_tokens_wait_for_the_pace() -> None:
    started = time.monotonic()
    batches = read_all(Writer(), 0.02)
    times = [when for when, batch in batches if batch.tokens and not batch.finished]
    assert 1 < len(times) < PIECES
    assert len(times) <= (times[-1] - started) / 0.02 + 2  # one for each moment that all flows share


def test_flows_rest_until_the_same_moments() -> None:
    for now in (0.0, 5.013, 5.019, 1e6 + 0.001):
        tick = next_tick(now, 0.02)
        assert now < tick <= now + 0.0201
        assert tick == next_tick((now + tick) / 2, 0.02)
    assert next_tick(5.0, 0.0) == 5.0


def test_the_first_token_and_the_end_do_not_wait() -> None:
    engine = Writer()
    started = time.monotonic()
    batches = read_all(engine, 10.0)
    assert len(batches[0][1].tokens[0].tokens) < PIECES
    assert batches[-1][1].finished
    assert batches[-1][0] - started < 9
