"""Where sequences leave restart points while they are read, and what of memory these may take.

A restart point costs as much as several pages (the window rows of every layer), so long texts get them at an interval
at which they take a tenth of what the pages take; besides, there is one at the last page border of every prompt, where
the next turn of a conversation or the same question asked again goes on, and wherever another request waits for one.
The end of an answer is kept to the token, with its open windows.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pelagos.cache.layout import CacheLayout
from pelagos.model.config import PAGE_TOKENS

_SHARE = 0.1  # of the bytes of pages, for restart points within long texts
MEMORY_SHARE = 0.25  # of the cache's bytes, for restart points of all kinds


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """``interval``: tokens between restart points of a long text, a multiple of 128."""

    interval: int

    @staticmethod
    def of(layout: CacheLayout) -> "RestartPolicy":
        num_pages = -(-layout.boundary_bytes // max(1, int(_SHARE * layout.page_bytes)))
        return RestartPolicy(interval=max(1, num_pages) * PAGE_TOKENS)

    def next_stop(self, position: int, num_prompt_tokens: int, wanted: Iterable[int]) -> int:
        """Where reading from ``position`` on must pause for a restart point, or the end of the prompt."""
        at_end = (num_prompt_tokens - 1) // PAGE_TOKENS * PAGE_TOKENS
        stops = [(position // self.interval + 1) * self.interval, at_end, num_prompt_tokens, *wanted]
        return min(stop for stop in stops if position < stop <= num_prompt_tokens)

    def is_stop(self, position: int, num_prompt_tokens: int, wanted: Iterable[int]) -> bool:
        """Whether a restart point belongs at ``position``."""
        at_end = (num_prompt_tokens - 1) // PAGE_TOKENS * PAGE_TOKENS
        return position % self.interval == 0 or position == at_end or position in wanted
