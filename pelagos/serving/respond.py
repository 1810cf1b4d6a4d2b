"""From a prepared request to a response: start it, stream or collect what comes, end it in every case."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from pelagos.engine.request import Finished, Request
from pelagos.serving import sse
from pelagos.serving.answer import Answer, Counts, Frame, count, headers, progress_text
from pelagos.serving.bridge import Batch, Flow
from pelagos.serving.errors import ApiError, as_api_error
from pelagos.serving.state import Call, Server
from pelagos.serving.tracing import stations

logger = logging.getLogger(__name__)

# Progress of a prompt is shown at most this often.
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked request: what the engine is to do, and what makes a response of it."""

    requests: list[Request]
    answer: Answer
    stream: bool
    protocol: str
    headers: dict[str, str] = field(default_factory=dict)


class Run:
    """One prepared request while it runs in the engine."""

    def __init__(self, server: Server, call: Call, prepared: Prepared) -> None:
        self.answer = prepared.answer
        self._server = server
        self._call = call
        self._ends: dict[int, Finished] = {}
        self._has_begun = False
        self._is_stopped = False
        self._has_ended = False
        self.flow = Flow(
            server.engine,
            prepared.requests,
            max_buffered_tokens=server.config.limits.max_buffered_tokens,
            bell=server.bell,
            pace=server.pace,
            on_finished=server.watch.ended(call, prepared.protocol),
        )

    async def start(self) -> None:
        """Raises what the engine says against the request. Whoever is cancelled here leaves nothing behind."""
        self._server.watch.begin(self._call, self.flow)
        try:
            await self._server.in_thread(self.flow.start)
        except BaseException:
            self.flow.leave(give_up=True)
            self._server.watch.end(self._call)
            raise

    async def batches(self, silence: Callable[[], float]) -> AsyncGenerator[list[Frame] | None, None]:
        """What to send, batch by batch; None where there was nothing for ``silence()`` seconds. Ends with the engine's
        requests. Leaving early ends them too."""
        try:
            while not self.flow.is_finished:
                batch = await self.flow.next_batch(silence())
                frames = None if batch is None else self._frames(batch)
                if self._has_ended:
                    await self.keep()
                yield frames
        finally:
            self.flow.leave()
            self._server.watch.end(self._call)

    async def keep(self) -> None:
        """Write down what must outlive the answer, which goes out also if that fails."""
        try:
            await self._server.store_in_thread(self.answer.keep)
        except Exception:
            logger.exception("an answer was not kept")

    def begin(self) -> list[Frame]:
        """The first events, with what is known of the cache; nothing the second time."""
        if self._has_begun:
            return []
        self._has_begun = True
        return self.answer.begin(sum(reading.num_cached for reading in self.flow.progress.values()))

    def _frames(self, batch: Batch) -> list[Frame]:
        frames: list[Frame] = []
        if batch.tokens or batch.finished or len(self.flow.progress) == len(self.flow):
            frames += self.begin()
        for news in batch.tokens:
            frames += self.answer.tokens(news)
        self._ends |= batch.finished
        if self.flow.is_finished:
            self._has_ended = True
            self._note()
            frames += self.answer.end(self._ends, self.trouble)
        elif self.answer.is_done and not self._is_stopped:
            self._is_stopped = True
            self.flow.abort()
        return frames

    def _note(self) -> None:
        """For the log and the trace: what the request came to."""
        counts = self.counts
        self._call.stations += stations(list(self._ends.values()))
        found = {
            "prompt_tokens": counts.num_prompt,
            "cached_tokens": counts.num_cached,
            "generated_tokens": counts.num_generated,
            "finish_reason": ",".join(sorted({a.finish_reason for end in self._ends.values() for a in end.answers})),
            "queue_seconds": counts.extra.get("queue_seconds"),
            "first_token_seconds": counts.extra.get("first_token_seconds"),
        }
        self._call.notes |= {name: value for name, value in found.items() if value is not None}

    @property
    def trouble(self) -> ApiError | None:
        """Why the answer is not whole, if it is not."""
        reasons = {answer.finish_reason for end in self._ends.values() for answer in end.answers}
        errors = [end.error for end in self._ends.values() if end.error is not None]
        if errors or "error" in reasons:
            return ApiError(
                500, f"the engine failed: {errors[0] if errors else 'it gave no reason'}", code="engine_error"
            )
        if self.flow.is_too_slow:
            return ApiError(400, "the answer was not read fast enough and was ended")
        if "deadline" in reasons:
            return ApiError(504, "the request was ended at its time limit", code="timeout")
        if "cancelled" in reasons and not self.answer.is_done:
            return ApiError(
                503, "the request was cancelled: the server is shutting down", code="cancelled", retry_after=5.0
            )
        return None

    @property
    def counts(self) -> Counts:
        return count(self._ends)


async def respond(server: Server, call: Call, http: HttpRequest, prepared: Prepared) -> ASGIApp:
    """The response to a prepared request; raises ApiError or a PelagosError before a stream has begun."""
    run = Run(server, call, prepared)
    await run.start()
    if prepared.stream:
        return sse.EventStream(stream(server, call, run), prepared.headers)
    result = await or_left(collect(run), http)
    return JSONResponse(result, headers={**prepared.headers, **headers(run.counts)})


async def stream(server: Server, call: Call, run: Run) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream of events. The last event always comes, whatever happens."""
    keep_alive = server.config.keep_alive_seconds
    last = shown = time.monotonic()
    batches = run.batches(lambda: max(0.001, last + keep_alive - time.monotonic()))
    try:
        async for frames in batches:
            now = time.monotonic()
            data = b"".join(sse.event(body, name) for name, body in frames or ())
            if not data and now - last >= keep_alive:
                alive = run.answer.alive()
                text = progress_text(run.flow.progress, run.flow.num_generated)
                data = b"".join(sse.event(body, name) for name, body in alive) + sse.comment(text)
            elif not data and not run.flow.num_generated and now - shown >= min(PROGRESS_SECONDS, keep_alive):
                data = sse.comment(progress_text(run.flow.progress, 0))
            if data:
                last = shown = now
                yield data
    except Exception as error:
        frames = run.answer.failure(as_api_error(error), call.id)
        await run.keep()
        yield b"".join(sse.event(body, name) for name, body in frames)
    finally:
        await batches.aclose()


async def collect(run: Run) -> dict[str, Any]:
    """The whole response. Raises ApiError if it did not become whole."""
    batches = run.batches(lambda: 3600.0)
    try:
        async for _ in batches:
            pass
    finally:
        await batches.aclose()
    if (trouble := run.trouble) is not None:
        raise trouble
    return run.answer.result()


async def or_left(work: Awaitable[Mapping[str, Any]], http: HttpRequest) -> Mapping[str, Any]:
    """What ``work`` gives, unless the client leaves first: then the work is cancelled and ApiError raised."""
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(sse.left(http.receive))
    try:
        await asyncio.wait((task, listener), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client left")
    finally:
        await sse.stop(listener)
        await sse.stop(task)
