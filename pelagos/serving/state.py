"""What all requests share: the engine, the model's names and tokenizer, what is counted; and one call of the API."""

import asyncio
import contextvars
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from pelagos.chat.effort import JULY_2026, EffortLevels
from pelagos.chat.grammar import JsonObject, compile_grammar
from pelagos.chat.tokenizer import Tokenizer
from pelagos.serving.bridge import Bell, EngineLike, Flow
from pelagos.serving.config import ServingConfig
from pelagos.serving.errors import ApiError, Dialect
from pelagos.serving.response_store import ResponseStore
from pelagos.serving.tracing import Station
from pelagos.serving.turns import Turns
from pelagos.serving.watch import Watch

T = TypeVar("T")

# Claude Code asks for a long context by this end of a model's name.
MAX_PACE_SECONDS = 0.1  # however many streams there are, each is told something ten times a second
LONG_CONTEXT_MARK = "[1m]"


@dataclass(kw_only=True)
class Call:
    """One HTTP request to the API. ``key``: name of the API key that it came with, "" where keys are not used.
    ``notes`` and ``stations``: what the log and the trace say of it."""

    id: str
    dialect: Dialect
    path: str
    key: str = ""
    started: float = field(default_factory=time.time)
    notes: dict[str, Any] = field(default_factory=dict)
    stations: list[Station] = field(default_factory=list)


class Server:
    """The parts of one server. ``effort_levels`` belong to the weights."""

    def __init__(
        self,
        engine: EngineLike,
        tokenizer: Tokenizer,
        config: ServingConfig,
        effort_levels: EffortLevels = JULY_2026,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config
        self.effort_levels = effort_levels
        self.watch = Watch(engine, vllm_name=config.model_name if config.vllm_metrics else None)
        self.store = ResponseStore(config.store_dir, max_count=config.max_stored, max_bytes=config.max_stored_bytes)
        self.turns = Turns(config.store_dir, tokenizer, max_count=config.max_turns, max_bytes=config.max_turn_bytes)
        self.background: dict[str, tuple[Flow, asyncio.Task[None]]] = {}  # by response id
        self.is_draining = False
        self.created = int(time.time())
        self._bell: Bell | None = None
        self._threads = ThreadPoolExecutor(config.num_preparers, thread_name_prefix="pelagos-prepare")
        # One of its own: the last event of an answer must not wait until some long prompt is rendered.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="pelagos-store")

    @property
    def context_length(self) -> int:
        """Tokens of a prompt and its answer together."""
        length: int = self.engine.model.config.max_positions
        return length if self.config.max_context is None else min(length, self.config.max_context)

    @cached_property
    def fingerprint(self) -> str:
        """The same for two servers whose answers to a request with a seed are the same, as far as can be told here."""
        from pelagos import __version__

        shape = repr(self.engine.model.config)
        return f"fp_{hashlib.sha256(f'{__version__} {self.config.model_name} {shape}'.encode()).hexdigest()[:12]}"

    @property
    def bell(self) -> Bell:
        """That of the running event loop."""
        if self._bell is None or self._bell.loop is not asyncio.get_running_loop():
            self._bell = Bell()
        return self._bell

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what takes long, such as reading a million tokens of text, beside the event loop."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(work))

    async def store_in_thread(self, work: Callable[[], None]) -> None:
        """Write to the stores beside the event loop. What was begun is done, also if the caller is cancelled."""
        context = contextvars.copy_context()
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, lambda: context.run(work)))

    def resolve_model(self, name: object, *, claude: bool = False) -> str:
        """The model's own name for a name in a request. ``claude``: names of Anthropic's models mean this one too.

        Raises ApiError that lists the names there are.
        """
        if name is None:
            raise ApiError(400, f"model must be given: {self._names}", param="model", code="model_not_found")
        if not isinstance(name, str):
            raise ApiError(400, f"model must be the name of a model: {self._names}", param="model")
        asked = name.removesuffix(LONG_CONTEXT_MARK)
        if asked not in self.config.names and not (claude and asked.startswith("claude-")):
            raise ApiError(
                400, f"model {name[:100]!r} is not served here: {self._names}", param="model", code="model_not_found"
            )
        return self.config.model_name

    def pace(self) -> float:
        """Seconds from one piece of a stream to the next, so that all streams together stay below the pieces a second
        that are wanted: telling of tokens takes time from those who make them."""
        return min(MAX_PACE_SECONDS, self.watch.num_running / self.config.pieces_per_second)

    def check_ready(self) -> None:
        """Raise ApiError 503 while the server is shutting down."""
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after=5.0)

    def warm_up(self) -> None:
        """Make what the first request would wait for: the official renderer, the vocabulary of grammars."""
        _ = self.tokenizer.official, self.fingerprint
        compile_grammar(JsonObject(), self.tokenizer)

    def close(self) -> None:
        """No more requests are prepared; answers that come to their ends are still kept."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close_stores(self) -> None:
        """Return when all is written; nothing is kept from now on."""
        self._writer.shutdown(wait=True)

    @property
    def _names(self) -> str:
        return f"the models are {', '.join(self.config.names)}"


def namespace(call: Call, user_id: str | None) -> str:
    """Whose work may be shared: that of one key, and of one of its users where it tells them apart. "" is everybody
    on a server without keys."""
    if not call.key and not user_id:
        return ""
    return hashlib.sha256(json.dumps([call.key, user_id or ""]).encode()).hexdigest()


def fair_share(call: Call, user: str | None) -> str:
    """Whom the work is done for; users take turns."""
    return namespace(call, user)


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}{secrets.token_hex(12)}"
