"""The cache of a model that runs on the reference ops: whole states side by side, copies of some of them kept.

Nothing is shared but by copying, so this is for machines without native kernels: right, and no more than that.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pelagos.cache.manager import Cache, CacheStats
from pelagos.cache.policy import MEMORY_SHARE, RestartPolicy
from pelagos.model.config import PAGE_TOKENS
from pelagos.model.state import State, layer_shape
from pelagos.model.transformer import Model

_INTERVAL = 4096  # tokens between kept states of a long prompt


@dataclass(frozen=True, kw_only=True)
class KeptState:
    """A kept state that a prompt begins with; None: there is none. ``namespace`` and ``ids`` are its key."""

    state: State | None
    num_tokens: int
    namespace: str

    @property
    def num_known(self) -> int:
        return self.num_tokens


class PlainTimeline:
    """One sequence: its state, and the pages that its tokens would fill."""

    def __init__(self, state: State, namespace: str, num_pages: int) -> None:
        self.state, self.namespace, self.num_pages = state, namespace, num_pages

    @property
    def num_tokens(self) -> int:
        return self.state.num_tokens


class PlainCache(Cache):
    def __init__(self, model: Model, num_bytes: int) -> None:
        self._model = model
        self.policy = RestartPolicy(interval=_INTERVAL)
        self._limit = int(MEMORY_SHARE * num_bytes)
        self._page_bytes = page_bytes(model)
        self.num_pages = max(2, (num_bytes - self._limit) // self._page_bytes)
        self._kept: OrderedDict[tuple[str, bytes], State] = OrderedDict()  # least lately used first
        self._kept_bytes, self._num_evicted = 0, 0
        self._open: set[PlainTimeline] = set()

    def match(self, namespace: str, ids: np.ndarray) -> KeptState:
        data = ids[:-1].tobytes()
        fitting = [key for key in self._kept if key[0] == namespace and data.startswith(key[1])]
        if not fitting:
            return KeptState(state=None, num_tokens=0, namespace=namespace)
        best = max(fitting, key=lambda key: len(key[1]))
        self._kept.move_to_end(best)
        state = self._kept[best]
        return KeptState(state=state, num_tokens=state.num_tokens, namespace=namespace)

    @property
    def _num_used(self) -> int:
        return sum(timeline.num_pages for timeline in self._open)

    def open(self, match: KeptState, num_pages: int) -> PlainTimeline | None:
        num_pages += match.num_tokens // PAGE_TOKENS
        if self._num_used + num_pages > self.num_pages:
            return None
        state = match.state.copy() if match.state else self._new_state()
        timeline = PlainTimeline(state, match.namespace, num_pages)
        self._open.add(timeline)
        return timeline

    def _new_state(self) -> State:
        model = self._model
        return State.new(model.config, model.config.layers, model.dtype, model.device)

    def file(
        self, timeline: PlainTimeline, ids: np.ndarray, num_prompt_tokens: int, wanted: Iterable[int] = ()
    ) -> None:
        position = timeline.num_tokens
        if position and position % PAGE_TOKENS == 0 and self.policy.is_stop(position, num_prompt_tokens, wanted):
            self._keep(timeline, ids)

    def _keep(self, timeline: PlainTimeline, ids: np.ndarray) -> None:
        key = timeline.namespace, ids[: timeline.num_tokens].tobytes()
        if key not in self._kept:
            self._kept[key] = timeline.state.copy()
            self._kept_bytes += self._kept[key].num_bytes
        while self._kept_bytes > self._limit and self._kept:
            self._drop()

    def _drop(self) -> None:
        _, state = self._kept.popitem(last=False)
        self._kept_bytes -= state.num_bytes
        self._num_evicted += 1

    def fork(self, timeline: PlainTimeline, num_pages: int) -> PlainTimeline:
        other = PlainTimeline(timeline.state.copy(), timeline.namespace, num_pages)
        timeline.num_pages -= num_pages
        self._open.add(other)
        return other

    def close(self, timeline: PlainTimeline, ids: np.ndarray, *, keep: bool = True) -> None:
        self._open.remove(timeline)
        if keep and timeline.num_tokens:
            self._keep(timeline, ids)

    def clear(self) -> None:
        while self._kept:
            self._drop()

    def stats(self) -> CacheStats:
        return CacheStats(
            num_pages=self.num_pages,
            num_pages_used=self._num_used,
            num_pages_kept=0,
            num_pages_reserved=0,
            page_bytes=self._page_bytes,
            restart_bytes=self._kept_bytes,
            num_evicted=self._num_evicted,
        )

    def check_integrity(self) -> None:
        assert self._kept_bytes == sum(state.num_bytes for state in self._kept.values())
        assert self._num_used <= self.num_pages


def page_bytes(model: Model) -> int:
    """Bytes of the compressed rows of 128 tokens, as the reference keeps them."""
    shapes = [layer_shape(model.config, layer) for layer in model.config.layers]
    parts = [part for shape in shapes for part in (shape.rows, shape.index) if part is not None]
    return max(1, sum(PAGE_TOKENS // part.ratio * part.size for part in parts) * model.dtype.itemsize)
