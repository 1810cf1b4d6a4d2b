"""Counts of an engine since its start, and what is going on in it now."""

from collections import Counter
from dataclasses import dataclass, field

from pelagos.cache.manager import CacheStats
from pelagos.engine.request import Finished


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Requests now waiting, running and paused; ``finished``: those that ended, by the reason of their first answer.
    Tokens: of prompts of finished requests; of prompts, found in the cache when work began; computed, prompts and
    answers together; generated; guessed and guessed right."""

    num_waiting: int
    num_running: int
    num_paused: int
    finished: dict[str, int]
    num_prompt_tokens: int
    num_cached: int
    num_computed: int
    num_generated: int
    num_drafted: int
    num_accepted: int
    cache: CacheStats


@dataclass(kw_only=True)
class Counters:
    finished: Counter[str] = field(default_factory=Counter)
    num_prompt_tokens: int = 0
    num_cached: int = 0
    num_computed: int = 0
    num_generated: int = 0
    num_drafted: int = 0
    num_accepted: int = 0

    def count(self, event: Finished) -> None:
        """Take in a request that has ended."""
        self.finished[event.answers[0].finish_reason] += 1
        self.num_prompt_tokens += event.usage.num_prompt_tokens
        self.num_drafted += event.usage.num_drafted
        self.num_accepted += event.usage.num_accepted

    def stats(self, *, num_waiting: int, num_running: int, num_paused: int, cache: CacheStats) -> Stats:
        counts = {**vars(self), "finished": dict(self.finished)}
        return Stats(num_waiting=num_waiting, num_running=num_running, num_paused=num_paused, cache=cache, **counts)
