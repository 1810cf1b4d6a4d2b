"""Batches made ahead by a thread, without a trace of it in what a run sees or saves."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pelagos.training.batch import PackedBatch
from pelagos.training.data import DataReport, Loader


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A batch, and where its loader stood when it was made."""

    batch: PackedBatch
    state: dict[str, Any]
    report: DataReport


class Prefetcher:
    """``with Prefetcher(loader, num_batches) as batches:`` what ``loader`` gives, up to ``num_batches`` made ahead.

    They are made as if the number and length of rows and the mixture stayed as they are. When one changes, the loader
    goes back to the last batch handed out, of which ``report`` and ``state_dict`` speak all the time. It belongs to
    this object from now on. Methods are those of Loader.
    """

    def __init__(self, loader: Loader, num_batches: int) -> None:
        assert num_batches >= 1, "without batches ahead there is no need for this class"
        self._loader, self._num_batches = loader, num_batches
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._ahead: deque[Future[_Made]] = deque()
        self._shape: tuple[int, int] | None = None
        self._state, self._report = loader.state_dict(), loader.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._go_back()
        self._thread.shutdown()

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        if dict(weights) != self._state["weights"]:
            self._go_back()
            self._loader.set_mixture(weights)
            self._state = self._loader.state_dict()

    def batch(self, num_rows: int, row_length: int) -> PackedBatch:
        if self._shape != (num_rows, row_length):
            self._go_back()
            self._shape = num_rows, row_length
        while len(self._ahead) <= self._num_batches:
            self._ahead.append(self._thread.submit(self._make, num_rows, row_length))
        try:
            made = self._ahead[0].result()
        except BaseException:
            self._go_back()
            raise
        self._ahead.popleft()
        self._state, self._report = made.state, made.report
        return made.batch

    def report(self) -> DataReport:
        return self._report

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._go_back()
        self._loader.load_state_dict(state)
        self._state, self._report = self._loader.state_dict(), self._loader.report()

    def _make(self, num_rows: int, row_length: int) -> _Made:
        batch = self._loader.batch(num_rows, row_length)
        return _Made(batch=batch, state=self._loader.state_dict(), report=self._loader.report())

    def _go_back(self) -> None:
        """Drop what was made ahead, and with it how far the loader went."""
        for future in reversed(self._ahead):
            future.cancel()
        wait(self._ahead)
        if self._ahead:
            self._ahead.clear()
            self._loader.load_state_dict(self._state)
