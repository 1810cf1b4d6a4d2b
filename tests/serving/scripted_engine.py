"""An engine without a model: it plays token ids from a script, in its own thread, with the surface of the real one."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pelagos.common.errors import OverloadedError
from pelagos.engine.request import (
    Answer,
    Event,
    Finished,
    FinishReason,
    OnEvent,
    Reading,
    Request,
    Times,
    Tokens,
    Usage,
    checked_prompt,
)
from pelagos.engine.sampler import Sampled
from pelagos.engine.stop import TextStream


@dataclass(frozen=True, kw_only=True)
class Script:
    """What to say to one request: the ids of each answer, ``piece`` of them in a step. ``num_cached`` prompt tokens are
    found, the rest is read ``read`` at a time."""

    answers: Sequence[Sequence[int]]
    piece: int = 1
    read: int = 1 << 20
    num_cached: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Stats:
    num_running: int
    num_waiting: int
    num_finished: int
    num_generated: int


@dataclass
class Playing:
    id: str
    request: Request
    script: Script
    on_event: OnEvent
    prompt: list[int]
    added: float
    num_read: int = 0
    constraints: list[Any] = field(default_factory=list)
    texts: list[TextStream] = field(default_factory=list)
    tokens: list[list[Sampled]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    reasons: list[FinishReason | None] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    first_token: float | None = None
    is_aborted: bool = False


class ScriptedEngine:
    """``script`` maps a request to what is said; ``pace``: seconds between steps. ``events`` has every event sent."""

    def __init__(
        self,
        script: Callable[[Request], Script],
        *,
        vocab_size: int,
        max_positions: int = 1 << 16,
        pace: float = 0.0,
        max_waiting: int = 1000,
    ) -> None:
        self.model = SimpleNamespace(
            config=SimpleNamespace(vocab_size=vocab_size, max_positions=max_positions, eos_ids=())
        )
        self.script = script
        self.pace = pace
        self.max_waiting = max_waiting
        self.requests: list[Request] = []
        self.finished: Counter[str] = Counter()
        self.reasons: list[str] = []
        self.num_generated = 0
        self._playing: deque[Playing] = deque()
        self._wake = threading.Condition()
        self._is_closed = self._is_draining = False
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, request: Request, on_event: OnEvent | None = None) -> str:
        prompt = checked_prompt(request.prompt_ids, self.model.config.vocab_size, self.model.config.max_positions)
        with self._wake:
            if self._is_draining or len(self._playing) >= self.max_waiting:
                raise OverloadedError("the queue is full: try again later", retry_after=2.5)
            self.requests.append(request)
            playing = Playing(
                id=f"r{len(self.requests)}",
                request=request,
                script=self.script(request),
                on_event=on_event or (lambda event: None),
                prompt=prompt,
                added=time.monotonic(),
            )
            count = request.num_choices
            playing.constraints = [
                None if request.constraint is None else request.constraint.copy() for _ in range(count)
            ]
            playing.texts = [
                TextStream(None if request.decoder is None else request.decoder(), request.params.stop)
                for _ in range(count)
            ]
            playing.tokens, playing.shown = [[] for _ in range(count)], [""] * count
            playing.reasons, playing.positions = [None] * count, [0] * count
            self._playing.append(playing)
            self._wake.notify_all()
        return playing.id

    def abort(self, request_id: str) -> None:
        with self._wake:
            for playing in self._playing:
                if playing.id == request_id:
                    playing.is_aborted = True
            self._wake.notify_all()

    def stats(self) -> Stats:
        return Stats(len(self._playing), 0, sum(self.finished.values()), self.num_generated)

    def drain(self, timeout: float) -> bool:
        with self._wake:
            self._is_draining = True
            if self._wake.wait_for(lambda: not self._playing, timeout):
                return True
            for playing in self._playing:
                playing.is_aborted = True
            return self._wake.wait_for(lambda: not self._playing, 5.0) and False

    def close(self) -> None:
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        self._thread.join(5.0)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._playing or self._is_closed)
                if self._is_closed:
                    return
                current = list(self._playing)
            for playing in current:
                self._step(playing)
            if self.pace:
                time.sleep(self.pace)

    def _step(self, playing: Playing) -> None:
        if playing.is_aborted:
            self._finish(playing, "cancelled")
        elif playing.request.timeout is not None and time.monotonic() - playing.added > playing.request.timeout:
            self._finish(playing, "deadline")
        elif playing.num_read < len(playing.prompt):
            cached = min(playing.script.num_cached, len(playing.prompt) - 1)
            playing.num_read = min(max(playing.num_read, cached) + playing.script.read, len(playing.prompt))
            self._send(
                playing,
                Reading(
                    request_id=playing.id,
                    num_read=playing.num_read,
                    num_cached=cached,
                    num_prompt_tokens=len(playing.prompt),
                ),
            )
        elif playing.script.error is not None:
            self._finish(playing, "error", playing.script.error)
        else:
            for choice in range(playing.request.num_choices):
                if playing.reasons[choice] is None:
                    self._say(playing, choice)
            if all(reason is not None for reason in playing.reasons):
                self._finish(playing, "stop")

    def _say(self, playing: Playing, choice: int) -> None:
        params = playing.request.params
        answers = playing.script.answers
        ids = answers[choice % len(answers)]
        new: list[Sampled] = []
        text = ""
        for _ in range(playing.script.piece):
            position = playing.positions[choice]
            if position >= len(ids) and playing.constraints[choice] is None:
                playing.reasons[choice] = "length"
                break
            token_id = self._allowed(playing, choice, ids[position] if position < len(ids) else None)
            sampled = Sampled(token_id=token_id)
            if params.logprobs is not None:
                top = tuple((token_id + n, -0.5 - n) for n in range(params.logprobs))
                sampled = Sampled(token_id=token_id, logprob=-0.5, top_logprobs=top)
            new.append(sampled)
            at_end = token_id in params.stop_ids
            text += "" if at_end else playing.texts[choice].push(token_id)
            if at_end or playing.texts[choice].stop_string is not None:
                playing.reasons[choice] = "stop"
            elif len(playing.tokens[choice]) + len(new) >= params.max_tokens:
                playing.reasons[choice] = "length"
            if playing.reasons[choice] is not None:
                break
        if playing.reasons[choice] is not None:
            text += playing.texts[choice].flush()
        playing.tokens[choice] += new
        playing.shown[choice] += text
        self.num_generated += len(new)
        if playing.first_token is None:
            playing.first_token = time.monotonic()
        self._send(playing, Tokens(request_id=playing.id, choice=choice, tokens=tuple(new), text=text))

    def _allowed(self, playing: Playing, choice: int, wanted: int | None) -> int:
        """The scripted token, or the first that the grammar allows in its place; the script then waits."""
        constraint = playing.constraints[choice]
        if constraint is not None:
            bits = constraint.mask(self.model.config.vocab_size)
            if bits is not None:
                if wanted is None or not bits[wanted]:
                    token_id = next(iter(constraint.forced()), None)
                    token_id = int(bits.nonzero()[0]) if token_id is None else token_id
                    constraint.observe(token_id)
                    return token_id
            elif wanted is None:
                wanted = min(playing.request.params.stop_ids)
            constraint.observe(wanted)
        assert wanted is not None
        playing.positions[choice] += 1
        return wanted

    def _finish(self, playing: Playing, reason: FinishReason, error: str | None = None) -> None:
        now = time.monotonic()
        answers = tuple(
            Answer(
                tokens=tuple(playing.tokens[choice]),
                text=playing.shown[choice],
                finish_reason=playing.reasons[choice] or reason,
                stop_string=playing.texts[choice].stop_string,
            )
            for choice in range(playing.request.num_choices)
        )
        cached = min(playing.script.num_cached, len(playing.prompt) - 1) if playing.num_read else 0
        usage = Usage(
            num_prompt_tokens=len(playing.prompt),
            num_cached=cached,
            num_computed=max(0, playing.num_read - cached),
            num_generated=sum(map(len, playing.tokens)),
        )
        times = Times(
            started=0.0,
            first_token=None if playing.first_token is None else playing.first_token - playing.added,
            finished=now - playing.added,
        )
        with self._wake:
            self._playing.remove(playing)
            self.finished[playing.id] += 1
            self.reasons.append(reason)
            self._wake.notify_all()
        self._send(
            playing,
            Finished(
                request_id=playing.id,
                answers=answers,
                usage=usage,
                times=times,
                seed=7,
                note=f"{cached} tokens were found",
                error=error,
            ),
        )

    def _send(self, playing: Playing, event: Event) -> None:
        playing.on_event(event)
