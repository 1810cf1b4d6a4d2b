"""Whose turn it is: which requests are worked on, and which of their tokens the next step reads.

Among requests the higher priority goes first, then the user who was served least, then the earlier arrival. A request
is started only if it can be finished; until then it waits, and those behind it too, so that a big one is not passed
over for ever. A higher priority may take the place of a running request, which keeps its state and goes on later.

Each step reads one token (or what is known of the next) of every answer that is being written, then a chunk of the
prompts that are being read; the chunk is small while anyone waits for tokens.
"""

from collections.abc import Iterator

import numpy as np

from pelagos.cache.manager import Cache, KnownPrefix
from pelagos.engine.config import EngineConfig
from pelagos.engine.sequence import Batch, Job, Piece, Sequence
from pelagos.model.config import PAGE_TOKENS


class Scheduler:
    def __init__(self, config: EngineConfig, cache: Cache, vocab_size: int) -> None:
        self.config, self.cache, self._vocab_size = config, cache, vocab_size
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self._served: dict[str, float] = {}  # tokens computed for each user, on a common scale

    def add(self, job: Job) -> None:
        """Put a request in the queue. A user who was idle starts level with the one who was served least."""
        user = job.request.user
        active = [self._served[other.request.user] for other in (*self.waiting, *self.running)]
        floor = min(active, default=0.0)
        self._served[user] = max(self._served.get(user, 0.0), floor)
        self.waiting.append(job)

    def remove(self, job: Job) -> None:
        """Forget a request that has ended; who waited for its work does not any more."""
        (self.running if job in self.running else self.waiting).remove(job)
        for other in self.waiting:
            if other.waits_for is not None and other.waits_for[0] is job:
                other.waits_for = None
        if not self.waiting and not self.running:
            self._served.clear()

    def _rank(self, job: Job) -> tuple[int, float, int]:
        return -job.request.priority, self._served[job.request.user], job.order

    @property
    def num_active(self) -> int:
        return sum(not job.is_paused for job in self.running)

    def admit(self) -> list[Job]:
        """Start what can be started now; returns the requests that are new among those worked on."""
        started: list[Job] = []
        paused = [job for job in self.running if job.is_paused]
        lacks_memory = False
        for job in sorted([*self.waiting, *paused], key=self._rank):
            is_full = self.num_active >= self.config.max_running
            gives_way = self._one_below(job.request.priority) if is_full else None
            if is_full and gives_way is None:
                break
            if job.is_paused:
                job.is_paused = False
            elif lacks_memory or self._must_wait(job):
                continue
            elif self._start(job):
                started.append(job)
            else:
                lacks_memory = True  # new ones wait; paused ones go on, for what they hold comes free at their end
                continue
            if gives_way is not None:
                gives_way.is_paused = True
        return started

    def _one_below(self, priority: int) -> Job | None:
        """The least urgent running request, if it is less urgent than ``priority``."""
        last = max((job for job in self.running if not job.is_paused), key=self._rank)
        return last if last.request.priority < priority else None

    def _must_wait(self, job: Job) -> bool:
        """Whether another request is reading a prefix that this one will want."""
        if job.sequences:
            return False
        if job.waits_for is not None:
            leader, border = job.waits_for
            if leader.is_reading and leader.sequences[0].timeline.num_tokens < border:
                return True
            job.waits_for = None
        match = self.cache.match(job.request.namespace, job.prompt)
        job.waits_for = max(self._leaders(job, match), key=lambda pair: pair[1], default=None)
        if job.waits_for is None:
            return False
        leader, border = job.waits_for
        leader.stops.add(border)
        return True

    def _leaders(self, job: Job, match: KnownPrefix) -> Iterator[tuple[Job, int]]:
        for leader in self.running:
            if not leader.is_reading or leader.request.namespace != job.request.namespace or leader.is_paused:
                continue
            border = _common(leader.prompt, job.prompt) // PAGE_TOKENS * PAGE_TOKENS
            position = leader.sequences[0].timeline.num_tokens
            if border >= match.num_tokens + PAGE_TOKENS and border > position:
                yield leader, border

    def num_pages(self, job: Job, num_shared: int) -> int:
        """Pages that a request comes to need behind ``num_shared`` pages of the tree."""
        num_first = -(-(job.num_prompt_tokens + job.max_tokens) // PAGE_TOKENS) - num_shared
        return num_first + (job.request.num_choices - 1) * self.num_further_pages(job)

    def num_further_pages(self, job: Job) -> int:
        """Pages of each further answer of a request: from the one that the prompt's end begins on."""
        num_tokens = job.num_prompt_tokens + job.max_tokens
        return -(-num_tokens // PAGE_TOKENS) - job.num_prompt_tokens // PAGE_TOKENS

    def _start(self, job: Job) -> bool:
        match = self.cache.match(job.request.namespace, job.prompt)
        timeline = self.cache.open(match, self.num_pages(job, match.num_tokens // PAGE_TOKENS))
        if timeline is None:
            return False
        job.num_cached = match.num_tokens
        job.note = _explained(match, job.num_prompt_tokens)
        job.sequences.append(job.new_sequence(0, timeline, self._vocab_size))
        self.waiting.remove(job)
        self.running.append(job)
        return True

    def plan(self) -> Batch:
        """The pieces of the next step; none if there is nothing to do."""
        batch: Batch = []
        reading: list[Job] = []
        for job in sorted([job for job in self.running if not job.is_paused], key=self._rank):
            if job.sequences[0].is_reading:
                reading.append(job)
                continue
            for sequence in job.sequences:
                if not sequence.is_closed:
                    batch.append(_next_tokens(sequence))
        room = self.config.shared_prefill_tokens if batch else self.config.prefill_tokens
        for job in reading:
            if room > 0:
                batch.append(self._chunk(job, room))
                room -= len(batch[-1].token_ids)
        for piece in batch:
            self._served[piece.sequence.job.request.user] += len(piece.token_ids)
        return batch

    def _chunk(self, job: Job, room: int) -> Piece:
        """The next part of a prompt, up to the next restart point."""
        sequence = job.sequences[0]
        position = sequence.timeline.num_tokens
        stop = self.cache.policy.next_stop(position, job.num_prompt_tokens, job.stops)
        stop = min(stop, position + room)
        is_last = stop == job.num_prompt_tokens
        token_ids: list[int] = sequence.ids[position:stop].tolist()
        return Piece(sequence=sequence, start=position, token_ids=token_ids, num_logits=int(is_last))


def _next_tokens(sequence: Sequence) -> Piece:
    """What is known behind the timeline's end, and guesses behind that."""
    drafts, start = sequence.drafts, sequence.timeline.num_tokens
    token_ids = sequence.ids[start : sequence.num_ids].tolist() + drafts
    num_drafts = len(drafts)
    return Piece(sequence, start, token_ids, 1 + num_drafts, num_drafts)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _explained(match: KnownPrefix, num_prompt_tokens: int) -> str:
    """Why as many tokens were found as were."""
    if match.num_known == 0:
        return "no earlier request began like this"
    if match.num_tokens == match.num_known:
        return f"{match.num_tokens} of {num_prompt_tokens} tokens were known"
    known = f"{match.num_known} of {num_prompt_tokens} tokens were known"
    return f"{known}; work went on from the restart point before their end, at {match.num_tokens}"
