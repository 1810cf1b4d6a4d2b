"""The engine: many requests on one model, each with the tokens it would get alone.

    engine = Engine(Model.load("nano"))
    [finished] = engine.generate([Request(prompt_ids=[0, 17, 42])])      # in scripts

    engine.start()                                                       # in servers: a thread of its own
    request_id = engine.add(Request(prompt_ids=[0, 17, 42]), on_event)

``step`` is all there is to it. Everything below the queue belongs to the thread that calls ``step``; ``add``, ``abort``
and ``stats`` may come from any thread.
"""

import itertools
import logging
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from queue import SimpleQueue

import numpy as np
from torch import Tensor

from pelagos.cache.manager import Cache
from pelagos.common.errors import OverloadedError, PelagosError, UsageError
from pelagos.engine.choice import choose_tokens
from pelagos.engine.config import EngineConfig
from pelagos.engine.memory import make_cache
from pelagos.engine.request import (
    Answer,
    Event,
    Finished,
    FinishReason,
    OnEvent,
    Reading,
    Request,
    checked_prompt,
)
from pelagos.engine.runner import NativeRunner, PlainRunner, Runner
from pelagos.engine.scheduler import Scheduler
from pelagos.engine.sequence import Batch, Job, Sequence
from pelagos.engine.speculative import Drafter
from pelagos.engine.stats import Counters, Stats
from pelagos.model.transformer import Model

_log = logging.getLogger(__name__)
_SWITCH_SECONDS = 0.0005
_IDLE_SECONDS = 1.0


class Engine:
    """See above. Raises ResourceError if the cache does not fit."""

    def __init__(self, model: Model, config: EngineConfig | None = None) -> None:
        self.model, self.config = model, config or EngineConfig()
        self.runner: Runner = NativeRunner(model) if model.native else PlainRunner(model)
        self.cache: Cache = make_cache(model, self.config)
        self.scheduler = Scheduler(self.config, self.cache, model.config.vocab_size)
        self.drafter = Drafter(model, self.config)
        self.counters = Counters()
        self._inbox: deque[Job] = deque()
        self._aborted: deque[str] = deque()
        self._jobs: dict[str, Job] = {}
        self._unsaid: dict[Sequence, None] = {}  # sequences with tokens that nobody was told of
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._is_open, self._is_stopping = True, False

    # --- from any thread ---

    def add(self, request: Request, on_event: OnEvent | None = None) -> str:
        """Put a request in the queue; returns its id. ``on_event`` sees all its events, the last of them a Finished, in
        the engine's thread, and must return at once; see ``OnEvent`` for what it may return.

        Raises UsageError for a prompt that cannot be read, or that could not be answered in an empty cache, and
        OverloadedError if the queue is full or the engine closes.
        """
        job = self._job(request, on_event)
        with self._lock:
            if not self._is_open:
                raise OverloadedError("the engine is closing", retry_after=10.0)
            num_waiting = len(self._inbox) + len(self.scheduler.waiting)
            if num_waiting >= self.config.max_waiting:
                raise OverloadedError(f"{num_waiting} requests are waiting already", retry_after=5.0)
            self._jobs[job.request_id] = job
            self._inbox.append(job)
            self._wake.notify()
        return job.request_id

    def abort(self, request_id: str) -> None:
        """End a request now, with what it has; one that has ended or was never added is no error."""
        with self._lock:
            if request_id in self._jobs:
                self._aborted.append(request_id)
                self._wake.notify()

    def stats(self) -> Stats:
        """What was done so far, and what is going on."""
        return self.counters.stats(
            num_waiting=len(self.scheduler.waiting) + len(self._inbox),
            num_running=self.scheduler.num_active,
            num_paused=len(self.scheduler.running) - self.scheduler.num_active,
            cache=self.cache.stats(),
        )

    # --- the engine's thread ---

    def step(self) -> bool:
        """Do the next piece of work for all requests together; False if there is none."""
        self._take_in()
        self._start(self.scheduler.admit())
        batch = self.scheduler.plan()
        if not batch:
            return bool(self._jobs)
        began, num_before = time.perf_counter(), self.counters.num_generated
        self.drafter.mark(batch)
        logits, streams = self.runner.run(batch)
        chosen = self._choose(batch, logits)
        self.drafter.draft(batch, streams)
        self._file(batch)
        self._hand_out(batch, chosen)
        self.drafter.note(batch, self.counters.num_generated - num_before, time.perf_counter() - began)
        return True

    def _take_in(self) -> None:
        """New requests into the queue; aborted and late ones out of it."""
        while self._inbox:
            self.scheduler.add(self._inbox.popleft())
        while self._aborted:
            job = self._jobs.get(self._aborted.popleft())
            if job is not None:
                self._end(job, "cancelled")
        now = time.monotonic()
        for job in [*self.scheduler.waiting, *self.scheduler.running]:
            timeout = job.request.timeout
            if timeout is not None and now - job.added >= timeout:
                self._end(job, "deadline")

    def _start(self, jobs: SequenceOf[Job]) -> None:
        for job in jobs:
            job.started = time.monotonic()
            self.counters.num_cached += job.num_cached
            self._tell(job, _reading(job))

    def _choose(self, batch: Batch, logits: Tensor) -> list[Sequence]:
        """The next tokens of all sequences that asked for logits; returns those sequences."""
        changed: list[Sequence] = []
        for piece in batch:
            sequence, job, num_read = piece.sequence, piece.sequence.job, len(piece.token_ids)
            self.counters.num_computed += num_read
            if sequence.num_ids > job.num_prompt_tokens:
                continue
            job.num_computed += num_read
            if piece.num_logits:
                self.cache.file(sequence.timeline, sequence.ids, job.num_prompt_tokens, job.stops)
                self._fork(sequence)
        for sequence, error in choose_tokens(batch, logits):
            changed.append(sequence)
            if error is not None:
                sequence.job.error, sequence.finish_reason = error, "error"
            elif sequence.job.first_token is None:
                sequence.job.first_token = time.monotonic()
        return changed

    def _fork(self, first: Sequence) -> None:
        """Every further answer goes on from the end of the prompt by itself."""
        job = first.job
        num_pages = self.scheduler.num_further_pages(job)
        for choice in range(1, job.request.num_choices):
            timeline = self.cache.fork(first.timeline, num_pages)
            job.sequences.append(job.new_sequence(choice, timeline, self.model.config.vocab_size))

    def _file(self, batch: Batch) -> None:
        """Pages that are full now are known to all."""
        for piece in batch:
            sequence, job = piece.sequence, piece.sequence.job
            if sequence.finish_reason == "error":  # it may have read guesses that nobody took back
                continue
            self.cache.file(sequence.timeline, sequence.ids, job.num_prompt_tokens, job.stops)

    def _hand_out(self, batch: Batch, changed: SequenceOf[Sequence]) -> None:
        """Events for what is new; sequences that ended are closed, and requests with them."""
        for piece in batch:
            if piece.num_logits == 0:
                self._tell(piece.sequence.job, _reading(piece.sequence.job))
        now = time.monotonic()
        for sequence in changed:
            self.counters.num_generated += sequence.count()
            self._unsaid[sequence] = None
        for sequence in [sequence for sequence in self._unsaid if sequence.job.quiet_until <= now]:
            self._say(sequence)
        ended = [sequence for sequence in changed if sequence.finish_reason is not None]
        for sequence in ended:
            self._close(sequence)
        for job in {sequence.job: None for sequence in ended}:
            if job.error is not None:
                self._end(job, "error")
            elif all(sequence.is_closed for sequence in job.sequences):
                self._finish(job)

    def _close(self, sequence: Sequence) -> None:
        """An answer is whole: its tokens stay known, its memory is free."""
        if not sequence.is_closed:
            sequence.is_closed = True
            self._say(sequence)
            self.cache.close(sequence.timeline, sequence.ids, keep=sequence.finish_reason != "error")
            sequence.job.answers[sequence.choice] = sequence.answer()

    def _end(self, job: Job, reason: FinishReason) -> None:
        """End a request as it is."""
        for sequence in job.sequences:
            sequence.finish_reason = sequence.finish_reason or reason
            self._close(sequence)
        for choice in range(job.request.num_choices):
            nothing = Answer(tokens=(), text="" if job.request.decoder else None, finish_reason=reason)
            job.answers.setdefault(choice, nothing)
        self._finish(job)

    def _finish(self, job: Job) -> None:
        self.scheduler.remove(job)
        with self._lock:
            del self._jobs[job.request_id]
        finished = job.finished(time.monotonic())
        self.counters.count(finished)
        self._tell(job, finished)

    def _say(self, sequence: Sequence) -> None:
        """Tell of tokens that were not told of yet."""
        self._unsaid.pop(sequence, None)
        if (news := sequence.news()) is not None:
            self._tell(sequence.job, news)

    def _tell(self, job: Job, event: Event) -> None:
        if job.on_event is not None:
            try:
                job.quiet_until = job.on_event(event) or 0.0
            except Exception:  # the caller's fault must not stop the others' work
                _log.exception("a request's event handler failed; it is not called again")
                job.on_event = None

    # --- running ---

    def start(self) -> None:
        """Run in a thread of the engine's own until ``close``."""
        assert self._thread is None, "the engine runs already"
        # Behind each native pass this thread needs the interpreter: others must not keep it for 5 ms, Python's default.
        sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
        self._thread = threading.Thread(target=self._run, name="pelagos-engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                is_busy = self.step()
            except Exception as error:
                _log.exception("a step of the engine failed; the requests in it are ended")
                self._fail(error)
                continue
            if not is_busy:
                with self._wake:
                    if not self._inbox and not self._aborted and not self._is_stopping:
                        self._wake.wait(_IDLE_SECONDS)

    def _fail(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, PelagosError) else "the engine failed: see the server's log"
        for job in list(self.scheduler.running) or list(self.scheduler.waiting):
            job.error = reason
            self._discard(job)

    def _discard(self, job: Job) -> None:
        """End a request whose state is not to be trusted any more."""
        for sequence in job.sequences:
            if not sequence.is_closed:
                sequence.is_closed, sequence.finish_reason = True, "error"
                self.cache.close(sequence.timeline, sequence.ids, keep=False)
                job.answers[sequence.choice] = sequence.answer()
        self._end(job, "error")

    def drain(self, timeout: float) -> bool:
        """Take no new requests, and wait until those there are have ended; after ``timeout`` seconds cancel them.
        Returns whether all ended by themselves."""
        with self._lock:
            self._is_open = False
        ended = self._wait_until_idle(timeout)
        for request_id in list(self._jobs):
            self.abort(request_id)
        self._wait_until_idle(_IDLE_SECONDS * 10)
        return ended

    def _wait_until_idle(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while self._jobs and time.monotonic() < end:
            if self._thread is None:
                self.step()
            else:
                time.sleep(0.01)
        return not self._jobs

    def close(self) -> None:
        """Cancel what is left and end the thread."""
        self.drain(0.0)
        with self._lock:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def generate(
        self, requests: SequenceOf[Request], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[Finished]:
        """Answer all ``requests``, in their order; for scripts. ``on_progress(num_done, num_requests)``."""
        finished: dict[str, Finished] = {}

        def note(event: Event) -> None:
            if isinstance(event, Finished):
                finished[event.request_id] = event
                if on_progress is not None:
                    on_progress(len(finished), len(requests))

        ids: list[str] = []
        for request in requests:
            while len(self.scheduler.waiting) + len(self._inbox) >= self.config.max_waiting:
                self._go_on()
            ids.append(self.add(request, note))
        while len(finished) < len(requests):
            self._go_on()
        return [finished[request_id] for request_id in ids]

    def stream(self, request: Request) -> Iterator[Event]:
        """The events of one request as they come. Who leaves before the last of them ends the request."""
        events: SimpleQueue[Event] = SimpleQueue()
        request_id = self.add(request, events.put)
        try:
            while True:
                while self._thread is None and events.empty():
                    self.step()
                event = events.get()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self.abort(request_id)
            if self._thread is None:
                self._take_in()

    def _go_on(self) -> None:
        if self._thread is None:
            self.step()
        else:
            time.sleep(0.001)

    def _job(self, request: Request, on_event: OnEvent | None) -> Job:
        config = self.model.config
        prompt = checked_prompt(request.prompt_ids, config.vocab_size, config.max_positions - 1)
        request.params.check_vocabulary(config.vocab_size)
        end_ids = set(request.params.stop_ids) | set(() if request.params.ignore_eos else config.eos_ids)
        job = Job(
            request_id=f"req-{secrets.token_hex(8)}",
            request=request,
            params=request.params.with_seed(),
            prompt=np.array(prompt, dtype=np.int32),
            max_tokens=min(request.params.max_tokens, config.max_positions - len(prompt)),
            end_ids=frozenset(end_ids),
            order=next(self._order),
            on_event=on_event,
            added=time.monotonic(),
        )
        # One page more than it needs must be there: a page that it goes on from is copied.
        if self.scheduler.num_pages(job, 0) >= self.cache.num_pages:
            raise UsageError(
                f"the request may come to {len(prompt) + job.max_tokens} tokens in {request.num_choices} answers, and "
                f"the cache holds {self.cache.most_tokens}: shorten it, lower max_tokens, or enlarge the cache"
            )
        return job


def _reading(job: Job) -> Reading:
    return Reading(
        request_id=job.request_id,
        num_read=job.sequences[0].timeline.num_tokens,
        num_cached=job.num_cached,
        num_prompt_tokens=job.num_prompt_tokens,
    )
