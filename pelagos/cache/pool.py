"""Pages on the device: numbers that are handed out and taken back, and the memory behind them.

Address space for all pages is reserved once; a page takes memory when it is first written. So the pool grows without
copying, and no address ever changes. Page p of layer l lies in that layer's arena at p · page bytes of the layer.
"""

import mmap
from collections.abc import Callable

import numpy as np
import torch

from pelagos.cache.layout import CacheLayout
from pelagos.common.errors import ResourceError
from pelagos.common.fields import show

_ALIGNMENT = 4096
MAX_PAGES = 1 << 24
_RECLAIMED = 16  # pages at least, so that the dearest part of finding them is done once for several


class PagePool:
    """Pages 0 .. num_pages − 1. A page has one owner for each time it was allocated or retained.

    ``memory``: int64 [L, 4], per layer the addresses of its two arenas and the bytes of a page in each, as the native
    code wants them; it stays valid while the pool lives. ``reclaim(n)``: called when no page is free, to release some.
    """

    def __init__(self, layout: CacheLayout, num_pages: int) -> None:
        if not 1 <= num_pages <= MAX_PAGES:
            raise ResourceError(f"the cache must have 1 to {MAX_PAGES} pages, got {show(num_pages)}")
        self.layout, self.num_pages = layout, num_pages
        self.reclaim: Callable[[int], int] = lambda _: 0
        self._free: list[int] = []  # taken back, last in first out: memory that is warm
        self._num_touched = 0  # pages below were handed out at least once
        self._owners = np.zeros(num_pages, dtype=np.int32)
        parts = [
            (number, i, part) for number, place in enumerate(layout.main.layers) for i, part in enumerate(place.parts)
        ]
        sizes = [-(-num_pages * part.page_bytes // _ALIGNMENT) * _ALIGNMENT for _, _, part in parts]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        try:
            self._map = mmap.mmap(-1, max(_ALIGNMENT, sum(sizes)), flags=flags)
        except OSError as error:
            raise ResourceError(f"no address space for a cache of {sum(sizes)} bytes: {error}") from error
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.memory = torch.zeros(max(1, len(layout.main.layers)), 4, dtype=torch.int64)
        self._arenas: list[tuple[int, int]] = []  # offset in the map, bytes of a page
        offset = 0
        for (number, i, part), size in zip(parts, sizes, strict=True):
            self.memory[number, 2 * i] = self._bytes.ctypes.data + offset
            self.memory[number, 2 * i + 1] = part.page_bytes
            self._arenas.append((offset, part.page_bytes))
            offset += size

    @property
    def num_used(self) -> int:
        return self._num_touched - len(self._free)

    @property
    def num_free(self) -> int:
        return self.num_pages - self.num_used

    def allocate(self) -> int:
        """A page with one owner; what it holds is left over from before."""
        if self.num_free == 0:
            self.reclaim(_RECLAIMED)
        if self._free:
            page = self._free.pop()
        else:
            assert self._num_touched < self.num_pages, "pages are reserved before they are allocated"
            page = self._num_touched
            self._num_touched += 1
        self._owners[page] = 1
        return page

    def release(self, page: int) -> None:
        """The owner gives the page back."""
        assert self._owners[page] == 1
        self._owners[page] = 0
        self._free.append(page)

    def copy(self, source: int, target: int) -> None:
        """All rows of a page into another."""
        for offset, size in self._arenas:
            at, to = offset + source * size, offset + target * size
            self._bytes[to : to + size] = self._bytes[at : at + size]

    def read(self, page: int) -> bytes:
        """All rows of a page, layer after layer."""
        return b"".join(self._bytes[offset + page * size :][:size].tobytes() for offset, size in self._arenas)

    def check_integrity(self, used: list[int]) -> None:
        """Raise AssertionError unless exactly the pages ``used`` are handed out, each once."""
        assert len(set(used)) == len(used), "a page has two owners"
        assert sorted(used) == np.flatnonzero(self._owners).tolist(), "pages were lost, or are used after their release"
        assert self.num_used == len(used)
        assert len(set(self._free)) == len(self._free)
