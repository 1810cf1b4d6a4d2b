"""Between the event loop and the engine's thread: requests go one way, events come back the other.

The engine calls ``Flow._on_event`` in its own thread and must not wait, so events are added up there: the newest
``Reading``, and all new tokens of an answer as one. The loop takes what there is whenever it has time, and the engine
tells of tokens no more often than the pace says. So a slow reader costs the tokens it has not read, up to a bound, and
no step of the engine; and a fast model does not spend its cores on telling of every token.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pelagos.engine.request import Event, Finished, OnEvent, Reading, Request, Tokens

if TYPE_CHECKING:
    from pelagos.engine.sampler import Sampled

logger = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What the server needs of ``pelagos.engine.engine.Engine``."""

    @property
    def model(self) -> Any: ...

    def start(self) -> None: ...

    def add(self, request: Request, on_event: OnEvent | None = None) -> str: ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> Any: ...

    def drain(self, timeout: float) -> bool: ...

    def close(self) -> None: ...


@dataclass(kw_only=True)
class NewTokens:
    """Tokens of one answer that came since the last batch."""

    request: int
    choice: int
    tokens: "list[Sampled]" = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What came since the last one. ``reading`` and ``finished`` by number of the request in its flow."""

    reading: dict[int, Reading]
    tokens: list[NewTokens]
    finished: dict[int, Finished]


@dataclass(kw_only=True)
class _Member:
    """One engine request of a flow. ``id`` is None until the engine has taken it."""

    request: Request
    id: str | None = None
    is_reading: bool = False
    has_tokens: bool = False
    is_finished: bool = False
    is_aborted: bool = False


class Bell:
    """Sets events of an event loop from other threads. For many at once it wakes the loop once: each time costs the
    engine's thread the interpreter for as long as the loop then takes."""

    def __init__(self) -> None:
        """Of the loop that runs here."""
        self.loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._rung: list[asyncio.Event] = []

    def ring(self, event: asyncio.Event) -> None:
        with self._lock:
            self._rung.append(event)
            is_first = len(self._rung) == 1
        if is_first:
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        with self._lock:
            rung, self._rung = self._rung, []
        for event in rung:
            event.set()


class Flow:
    """The engine requests of one API request, and their events.

    ``start`` in any thread, then in the loop ``next_batch`` until ``is_finished``; ``leave`` in the loop, always, at
    the end. ``on_finished`` is called in the engine's thread with each request's number and end, exactly once for each
    request that the engine took, also after ``leave``.
    """

    def __init__(
        self,
        engine: EngineLike,
        requests: Sequence[Request],
        *,
        max_buffered_tokens: int,
        bell: Bell,
        pace: Callable[[], float] = lambda: 0.0,
        on_finished: Callable[[int, Finished], None] | None = None,
    ) -> None:
        """``pace`` gives, in any thread, the seconds from one batch of tokens to the next."""
        self._engine = engine
        self._members = [_Member(request=request) for request in requests]
        self._max_buffered = max_buffered_tokens
        self._pace = pace
        self._on_finished = on_finished
        self._bell = bell
        self._news = asyncio.Event()
        # Held for a few statements at a time, never while the engine is called.
        self._lock = threading.Lock()
        self._is_woken = False
        self._has_left = False
        self._reading: dict[int, Reading] = {}
        self._tokens: dict[tuple[int, int], NewTokens] = {}
        self._finished: dict[int, Finished] = {}
        self._num_buffered = 0
        self.num_generated = 0
        self.progress: dict[int, Reading] = {}
        self.is_too_slow = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def is_finished(self) -> bool:
        """Whether the end of every request has come; read it after taking a batch."""
        return all(member.is_finished for member in self._members) and not self._finished

    def start(self) -> None:
        """Give the requests to the engine: all, or none and its error (UsageError, OverloadedError)."""
        for number, member in enumerate(self._members):
            try:
                request_id = self._engine.add(member.request, self._listener(number))
            except BaseException:
                self.leave(give_up=True)
                raise
            with self._lock:
                member.id = request_id
                gone = self._has_left and not member.is_finished and not member.is_aborted
                member.is_aborted |= gone
            if gone:  # the client left while the engine took the request
                self._engine.abort(request_id)

    async def next_batch(self, timeout: float | None = None) -> Batch | None:
        """Wait for news and take all of it; None if there was none for ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._news.wait()
        except TimeoutError:
            return None
        self._news.clear()
        with self._lock:
            self._is_woken = False
            batch = Batch(reading=self._reading, tokens=list(self._tokens.values()), finished=self._finished)
            self._reading, self._tokens, self._finished = {}, {}, {}
            self._num_buffered = 0
        return batch

    def abort(self) -> None:
        """Stop the requests that still run; their ends are still to come."""
        self._abort_where(lambda member: True)

    def leave(self, *, give_up: bool = False) -> None:
        """Nobody reads on. A prompt that is being read is read to its end, so that asking again finds it; everything
        else stops, and with ``give_up`` that too."""
        with self._lock:
            self._has_left = True
            self._tokens = {}
        self._abort_where(lambda member: give_up or member.has_tokens or not member.is_reading)

    def _abort_where(self, chosen: Callable[[_Member], bool]) -> None:
        with self._lock:
            stopped = [
                member
                for member in self._members
                if member.id is not None and not member.is_finished and not member.is_aborted and chosen(member)
            ]
            for member in stopped:
                member.is_aborted = True
        for member in stopped:
            assert member.id is not None
            self._engine.abort(member.id)

    def _listener(self, number: int) -> OnEvent:
        def on_event(event: Event) -> float | None:
            self._on_event(number, event)
            return next_tick(time.monotonic(), self._pace()) if isinstance(event, Tokens) else None

        return on_event

    def _on_event(self, number: int, event: Event) -> None:
        """In the engine's thread."""
        abort_now = False
        with self._lock:
            member = self._members[number]
            if isinstance(event, Tokens):  # by far the most frequent
                member.has_tokens = True
                self.num_generated += len(event.tokens)
                abort_now = self._take_tokens(number, event) and not member.is_aborted
                member.is_aborted |= abort_now
            elif isinstance(event, Reading):
                member.is_reading = True
                self._reading[number] = self.progress[number] = event
            else:
                member.is_finished = True
                self._finished[number] = event
            wake = not self._is_woken and not self._has_left
            self._is_woken |= wake
        if abort_now:
            self._engine.abort(event.request_id)
        if wake:
            self._bell.ring(self._news)
        if isinstance(event, Finished) and self._on_finished is not None:
            try:
                self._on_finished(number, event)
            except Exception:
                logger.exception("the end of request %s was not counted", event.request_id)

    def _take_tokens(self, number: int, event: Tokens) -> bool:
        """Add them up; whether the request is to end here: nobody reads, or too slowly."""
        if self._has_left:
            return True
        news = self._tokens.get((number, event.choice))
        if news is None:
            news = self._tokens[number, event.choice] = NewTokens(request=number, choice=event.choice)
        news.tokens += event.tokens
        news.text += event.text
        self._num_buffered += len(event.tokens)
        if self._num_buffered > self._max_buffered:
            self.is_too_slow = True
        return self.is_too_slow


def next_tick(now: float, pace: float) -> float:
    """When tokens are wanted again: by all flows of a server at the same moments, so that the loop takes a core from
    the engine once for all of them."""
    return (now // pace + 1) * pace if pace else now
