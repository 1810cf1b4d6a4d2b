"""The cache as the engine sees it: open a sequence, file its pages, fork it, close it.

``Cache`` is the contract. ``PagedCache`` keeps sequences of the native forward pass; ``plain.PlainCache`` those of the
reference ops.

A sequence is opened only if it can be finished: the pages that it may come to need are reserved, among those that are
free or could be evicted. So no step of the engine ever lacks a page.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pelagos.cache.layout import CacheLayout
from pelagos.cache.policy import MEMORY_SHARE, RestartPolicy
from pelagos.cache.pool import PagePool
from pelagos.cache.prefix import Match, Node, PrefixTree, Tail
from pelagos.cache.timeline import Timeline
from pelagos.model.config import PAGE_TOKENS


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Pages and bytes of the device's part of the cache. In use: by running sequences; kept: beside those."""

    num_pages: int
    num_pages_used: int
    num_pages_kept: int
    num_pages_reserved: int
    page_bytes: int
    restart_bytes: int
    num_evicted: int


class KnownPrefix(Protocol):
    """What a cache found of a prompt. ``num_tokens``: from where it can go on; ``num_known``: tokens whose rows are
    there."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_known(self) -> int: ...


class Cache(ABC):
    """What an engine asks of its cache. ``num_pages``: pages in all, of 128 tokens each.

    What ``match`` and ``open`` return belongs to the cache that returned it; of a sequence others read ``num_tokens``,
    how many tokens it has read.
    """

    policy: RestartPolicy
    num_pages: int

    @property
    def most_tokens(self) -> int:
        """The longest sequence that can be opened in an empty cache."""
        return (self.num_pages - 1) * PAGE_TOKENS

    @abstractmethod
    def match(self, namespace: str, ids: np.ndarray) -> KnownPrefix:
        """What is known of a prompt (int32)."""

    @abstractmethod
    def open(self, match: Any, num_pages: int) -> Any:
        """A sequence that goes on from ``match`` and comes to need ``num_pages`` pages behind what it shares, or None
        if they are not to be had now."""

    @abstractmethod
    def file(self, timeline: Any, ids: np.ndarray, num_prompt_tokens: int, wanted: Iterable[int] = ()) -> None:
        """Make known what the sequence has read. ``ids``: int32, all its tokens; no token may be rewound after it was
        filed."""

    @abstractmethod
    def fork(self, timeline: Any, num_pages: int) -> Any:
        """A second sequence with the same tokens, which takes ``num_pages`` pages of what the first one reserved."""

    @abstractmethod
    def close(self, timeline: Any, ids: np.ndarray, *, keep: bool = True) -> None:
        """End a sequence. With ``keep`` its tokens stay known, and others can go on from its last one."""

    @abstractmethod
    def clear(self) -> None:
        """Give up everything that no sequence uses."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Pages and bytes now."""

    @abstractmethod
    def check_integrity(self) -> None:
        """AssertionError if a page is lost, owned twice, or used after its release."""


class PagedCache(Cache):
    """Sequences in a pool of pages, prefixes in a tree."""

    def __init__(self, layout: CacheLayout, num_bytes: int, fingerprint: bytes) -> None:
        """Raises ResourceError if ``num_bytes`` hold no page."""
        self.layout, self.policy = layout, RestartPolicy.of(layout)
        self._restart_limit = int(MEMORY_SHARE * num_bytes)
        self.pool = PagePool(layout, (num_bytes - self._restart_limit) // max(1, layout.page_bytes))
        self.num_pages = self.pool.num_pages
        self.tree = PrefixTree(self.pool, fingerprint)
        self._open: set[Timeline] = set()

    def match(self, namespace: str, ids: np.ndarray) -> Match:
        return self.tree.match(namespace, ids)

    @property
    def num_reserved(self) -> int:
        """Pages that open sequences may still come to need."""
        return sum(timeline.num_reserved for timeline in self._open)

    def open(self, match: Match, num_pages: int) -> Timeline | None:
        place = match.place
        leaf = place.parent if isinstance(place, Tail) else place
        self.tree.use(leaf)
        room = self.pool.num_free + self.tree.num_evictable - self.num_reserved
        if isinstance(place, Tail):
            room -= 1  # its page must outlive the copy
        if num_pages > room:
            self.tree.leave(leaf)
            return None
        timeline = Timeline(self.pool, leaf, leaf.path(), num_pages)
        self._open.add(timeline)
        if isinstance(place, Tail):
            restart, page = place.restart, self._page_beside(timeline, place)
            timeline.append(page)
            timeline.load(restart, place.num_tokens)
        elif place.restart is not None:
            timeline.load(place.restart, place.num_tokens)
        return timeline

    def _page_beside(self, timeline: Timeline, tail: Tail) -> int:
        """A page of the timeline's own with the rows of ``tail``."""
        while self.pool.num_free == 0:
            if not self.tree.evict(1, spare=tail):
                raise AssertionError("pages are counted before a sequence is opened")
        page = self.pool.allocate()
        timeline.num_reserved -= 1
        self.pool.copy(tail.page, page)
        return page

    def file(self, timeline: Timeline, ids: np.ndarray, num_prompt_tokens: int, wanted: Iterable[int] = ()) -> None:
        """Hand pages that are full to the tree, and leave a restart point where one belongs."""
        while (timeline.num_filed + 1) * PAGE_TOKENS <= timeline.num_tokens:
            number = timeline.num_filed
            tokens = ids[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS].tobytes()
            node = self.tree.add(timeline.leaf, tokens, int(timeline.table[number]))
            timeline.table[number] = node.page
            self._move(timeline, node)
        position = timeline.num_tokens
        is_border = position > 0 and position % PAGE_TOKENS == 0
        if is_border and self.policy.is_stop(position, num_prompt_tokens, wanted):
            self._put_restart(timeline)

    def _move(self, timeline: Timeline, node: Node) -> None:
        old, timeline.leaf = timeline.leaf, node
        timeline.num_filed += 1
        self.tree.move(old, node)

    def _put_restart(self, timeline: Timeline) -> None:
        if timeline.leaf.restart is None:
            self.tree.put_restart(timeline.leaf, timeline.save())
            self.tree.evict_restarts(self._restart_limit)

    def fork(self, timeline: Timeline, num_pages: int) -> Timeline:
        assert timeline.num_reserved >= num_pages
        path = timeline.table[: timeline.num_filed].tolist()
        self.tree.use(timeline.leaf)
        other = Timeline(self.pool, timeline.leaf, path, num_pages)
        timeline.num_reserved -= num_pages
        self._open.add(other)
        for page in timeline.own_pages:
            other.append(self.pool.allocate())
            other.num_reserved -= 1
            self.pool.copy(page, int(other.table[other.num_pages - 1]))
        other.block[:] = timeline.block
        other.num_tokens, other.draft.num_tokens = timeline.num_tokens, timeline.draft.num_tokens
        return other

    def close(self, timeline: Timeline, ids: np.ndarray, *, keep: bool = True) -> None:
        if keep and timeline.num_tokens:
            self.file(timeline, ids, timeline.num_tokens)
            if timeline.num_tokens == timeline.leaf.num_tokens:
                self._put_restart(timeline)
            else:
                self._put_tail(timeline, ids)
        for page in timeline.own_pages:
            self.pool.release(page)
        timeline.num_pages = timeline.num_filed
        self._open.remove(timeline)
        timeline.num_reserved = 0
        self.tree.leave(timeline.leaf)

    def _put_tail(self, timeline: Timeline, ids: np.ndarray) -> None:
        page, *rest = timeline.own_pages
        tokens = ids[timeline.num_filed * PAGE_TOKENS : timeline.num_tokens].tobytes()
        self.tree.put_tail(timeline.leaf, tokens, page, timeline.save())
        timeline.table[timeline.num_filed : timeline.num_filed + len(rest)] = rest
        timeline.num_pages -= 1
        self.tree.evict_restarts(self._restart_limit)

    def clear(self) -> None:
        self.tree.evict(self.pool.num_pages)

    def stats(self) -> CacheStats:
        return CacheStats(
            num_pages=self.pool.num_pages,
            num_pages_used=self.pool.num_used - self.tree.num_evictable,
            num_pages_kept=self.tree.num_evictable,
            num_pages_reserved=self.num_reserved,
            page_bytes=self.layout.page_bytes,
            restart_bytes=self.tree.restart_bytes,
            num_evicted=self.tree.num_evicted,
        )

    def check_integrity(self) -> None:
        own = [page for timeline in self._open for page in timeline.own_pages]
        self.pool.check_integrity(self.tree.check_integrity() + own)
