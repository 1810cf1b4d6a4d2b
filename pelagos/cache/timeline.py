"""One sequence in the pool: its pages, its block, and the way back over tokens that were tried and not kept.

    table   page numbers of tokens 0..127, 128..255, ...: first those of the prefix tree, then the sequence's own
    block   window rings, open windows, overlaps (and those of the multi-token-prediction block behind them)

A timeline owns its block and the pages behind ``leaf``; those up to ``leaf`` belong to the tree, which holds them while
the timeline uses ``leaf``.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from pelagos.cache.layout import Span, overlap_spans, rewind_spans
from pelagos.cache.pool import PagePool
from pelagos.model.config import PAGE_TOKENS
from pelagos.model.native_state import SequenceMemory

if TYPE_CHECKING:
    from pelagos.cache.prefix import Node

MAX_REWIND = 3  # tokens: with one more, a window of four could close twice within what is undone


class DraftMemory(SequenceMemory):
    """The multi-token-prediction block's part of a sequence: window rows alone, in the block of the timeline."""

    def __init__(self, timeline: "Timeline") -> None:
        self._timeline = timeline
        self._no_pages = torch.zeros(len(timeline.layout.draft.layers), 4, dtype=torch.int64)
        self.num_tokens = 0

    @property
    def num_bytes(self) -> int:
        return self._timeline.layout.draft.block_bytes

    def reserve(self, num_tokens: int) -> tuple[int, int, int]:
        """There are no compressed rows, so there is nothing to make room for."""
        block = self._timeline.block_address + self._timeline.layout.main.block_bytes
        return 0, block, self._no_pages.data_ptr()


class Timeline(SequenceMemory):
    """See above. ``num_reserved``: pages that it may come to own and has not allocated yet."""

    def __init__(self, pool: PagePool, leaf: "Node", path: list[int], num_reserved: int) -> None:
        """``path``: pages of the tree up to ``leaf``. The block is to be filled by ``load`` or is that of no tokens."""
        self.pool, self.layout, self.leaf, self.num_reserved = pool, pool.layout, leaf, num_reserved
        self.num_tokens = 0
        self._block = torch.zeros(self.layout.block_bytes, dtype=torch.uint8)
        self.block = self._block.numpy()
        self.block_address = self._block.data_ptr()
        self._set_table(np.zeros(max(8, 2 * len(path)), dtype=np.int32))
        self.table[: len(path)] = path
        self.num_pages, self.num_filed = len(path), len(path)
        self.draft = DraftMemory(self)
        self._undo: tuple[int, np.ndarray] | None = None

    @property
    def num_bytes(self) -> int:
        return self.layout.block_bytes + self.num_pages * self.layout.page_bytes

    @property
    def own_pages(self) -> list[int]:
        """Pages behind ``leaf``, in order."""
        pages: list[int] = self.table[self.num_filed : self.num_pages].tolist()
        return pages

    def reserve(self, num_tokens: int) -> tuple[int, int, int]:
        while num_tokens > self.num_pages * PAGE_TOKENS:
            assert self.num_reserved > 0, "the timeline outgrew what it reserved"
            self.append(self.pool.allocate())
            self.num_reserved -= 1
        return self._addresses

    def append(self, page: int) -> None:
        """A page of its own, which is the next one in the table."""
        if self.num_pages == len(self.table):
            self._set_table(np.concatenate([self.table, np.zeros_like(self.table)]))
        self.table[self.num_pages] = page
        self.num_pages += 1

    def _set_table(self, table: np.ndarray) -> None:
        self.table = table
        self._addresses = table.ctypes.data, self.block_address, self.pool.memory.data_ptr()

    def load(self, data: np.ndarray, num_tokens: int) -> None:
        """Go on behind ``num_tokens`` tokens, from what ``save`` gave there."""
        at = 0
        for start, stop in self._spans(num_tokens):
            self.block[start:stop] = data[at : at + stop - start]
            at += stop - start
        self.num_tokens = self.draft.num_tokens = num_tokens

    def save(self) -> np.ndarray:
        """What a restart here needs beside the pages."""
        return np.concatenate([self.block[start:stop] for start, stop in self._spans(self.num_tokens)])

    def _spans(self, num_tokens: int) -> tuple[Span, ...]:
        return self.layout.boundary if num_tokens % PAGE_TOKENS == 0 else ((0, self.layout.block_bytes),)

    def save_draft(self) -> np.ndarray:
        """The multi-token-prediction block's window, for ``load_draft`` at the same number of the timeline's tokens."""
        self._draft_tokens = self.draft.num_tokens
        return self.block[self.layout.main.block_bytes :].copy()

    def load_draft(self, saved: np.ndarray) -> None:
        """Undo what the block read since ``save_draft``."""
        self.block[self.layout.main.block_bytes :] = saved
        self.draft.num_tokens = self._draft_tokens

    def mark(self) -> None:
        """Remember this place: the next call may read up to MAX_REWIND tokens too many."""
        self._undo = (self.num_tokens, self.block.copy())

    def rewind(self, num_tokens: int) -> None:
        """Drop all but the first ``num_tokens`` tokens, at least one more than there were at ``mark``. Rows behind them
        stay in their pages, where the next ones overwrite them."""
        assert self._undo is not None
        marked, old = self._undo
        end, self._undo = self.num_tokens, None
        assert marked < num_tokens <= end <= marked + MAX_REWIND + 1
        for start, stop in self._undone(marked, num_tokens, end):
            self.block[start:stop] = old[start:stop]
        self.num_tokens = num_tokens

    def _undone(self, marked: int, kept: int, end: int) -> Iterator[Span]:
        for position in range(kept, end):
            yield from rewind_spans(self.layout.main, 0, position)
        for place in self.layout.main.layers:
            for ratio, span in overlap_spans(place):
                if kept // ratio == marked // ratio < end // ratio:  # the window that closed is open again
                    yield span
