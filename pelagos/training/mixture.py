"""Endless documents of several sources, drawn so that each source has its share of the tokens.

Of a source several documents are open at a time and each in turn gives one row's length, so that the rows of a batch
come from many documents, however long these are. The length of rows and the shares may change at any moment.
"""

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelagos.common.errors import UsageError
from pelagos.common.fields import show
from pelagos.training.documents import DocumentSource
from pelagos.training.packing import Document

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens of one document, from token ``start`` on. ``made_for``: the row length that the document was made for."""

    source: DocumentSource
    number: int
    made_for: int
    start: int
    document: Document

    def __len__(self) -> int:
        return len(self.document)

    def part(self, start: int, stop: int) -> "Part":
        """Tokens start .. stop of this part."""
        return Part(
            source=self.source,
            number=self.number,
            made_for=self.made_for,
            start=self.start + start,
            document=self.document.part(start, stop),
        )

    def cursor(self) -> list[int]:
        """What ``at`` makes an equal part from."""
        return [self.number, self.made_for, self.start, len(self)]

    @classmethod
    def at(cls, source: DocumentSource, cursor: Sequence[int]) -> "Part":
        """Raises ValueError if there is no such part."""
        number, made_for, start, length = cursor
        if any(type(value) is not int for value in cursor) or min(number, made_for - 1, start, length - 1) < 0:
            raise ValueError(f"{cursor} is no place in source {source.name}")
        document = source.document(number, made_for)
        if start + length > len(document):
            raise ValueError(f"document {number} of source {source.name} ends before {start + length} tokens")
        whole = cls(source=source, number=number, made_for=made_for, start=0, document=document)
        return whole.part(start, start + length)


class Stream:
    """One source, read through ``num_open`` documents side by side."""

    def __init__(self, source: DocumentSource, num_open: int) -> None:
        self.source = source
        self.num_opened = 0
        self._num_open = min(num_open, source.num_documents or 1)
        self._open: deque[Part] = deque()

    def take(self, row_length: int) -> Part:
        """The next part, of at most ``row_length`` tokens."""
        while len(self._open) < self._num_open:
            document = self.source.document(self.num_opened, row_length)
            whole = Part(source=self.source, number=self.num_opened, made_for=row_length, start=0, document=document)
            self._open.append(whole)
            self.num_opened += 1
        first = self._open.popleft()
        if len(first) > row_length:
            self._open.append(first.part(row_length, len(first)))
            first = first.part(0, row_length)
        return first

    def state_dict(self) -> dict[str, Any]:
        return {"opened": self.num_opened, "open": [part.cursor() for part in self._open]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_opened = int(state["opened"])
        self._open = deque(Part.at(self.source, cursor) for cursor in state["open"])


class Mixture:
    """Streams by name of their source, and how much of each was taken since the aim was set."""

    def __init__(self, sources: Sequence[DocumentSource], num_open: int) -> None:
        """``num_open``: documents of a source that are read side by side; of a source without end it is one."""
        assert len({source.name for source in sources}) == len(sources), "two sources have the same name"
        self.sources = list(sources)
        self.streams = {source.name: Stream(source, num_open) for source in sources}
        self._aim: tuple[dict[str, float], int] | None = None  # weights and row length
        self._shares: dict[str, float] = {}
        self._taken: dict[str, int] = {}

    def aim(self, weights: Mapping[str, float], row_length: int, waiting: Iterable[Part]) -> None:
        """From now on take parts of at most ``row_length`` tokens, each source or group by its weight.

        ``waiting``: what was taken before but comes under the new aim. The same aim again changes nothing.
        """
        if self._aim != (dict(weights), row_length):
            self._set_aim(weights, row_length)
            self._taken = dict.fromkeys(self.streams, 0)
            for part in waiting:
                self._taken[part.source.name] += len(part)

    def _set_aim(self, weights: Mapping[str, float], row_length: int) -> None:
        self._shares = token_shares(self.sources, weights, row_length)
        self._aim = dict(weights), row_length
        unfit = token_shares(self.sources, weights).keys() - self._shares.keys()
        if unfit:
            log.warning("rows of %d tokens are too short for %s", row_length, ", ".join(sorted(unfit)))

    def take(self) -> Part:
        """The next part of the source that lacks most of its share."""
        assert self._aim is not None, "aim comes first"
        total = sum(self._taken.values())
        name = max(self._shares, key=lambda name: self._shares[name] * total - self._taken[name])
        part = self.streams[name].take(self._aim[1])
        self._taken[name] += len(part)
        return part

    def state_dict(self) -> dict[str, Any]:
        streams = {name: stream.state_dict() for name, stream in self.streams.items()}
        return {"aim": self._aim and list(self._aim), "taken": dict(self._taken), "streams": streams}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"][name])
        self._aim = None
        if state["aim"] is not None:
            weights, row_length = state["aim"]
            self._set_aim(weights, row_length)
            self._taken = {name: int(state["taken"][name]) for name in self.streams}


def token_shares(
    sources: Sequence[DocumentSource], weights: Mapping[str, float], row_length: int | None = None
) -> dict[str, float]:
    """Share of the tokens of each source, without those that have none; together 1.

    ``weights``: by name of a group, whose sources share it in proportion to their size, or of a single source. With a
    ``row_length`` only sources that fit it take part. Raises UsageError for a name that nothing has, a weight below 0,
    no weight above 0, and a name for which nothing fits.
    """
    shares = dict.fromkeys((source.name for source in sources), 0.0)
    for name, weight in sorted(weights.items()):
        if not 0 <= weight < float("inf"):
            raise UsageError(f"the weight of {name} in the mixture must be a number of at least 0, got {show(weight)}")
        members = [s for s in sources if s.group == name] or [s for s in sources if s.name == name]
        if weight and not members:
            known = ", ".join(sorted({source.group for source in sources} | {*shares}))
            raise UsageError(f"the mixture names {show(name)}, but there is no source or group but {known}")
        fitting = [source for source in members if row_length is None or source.fits(row_length)]
        if weight and not fitting:
            raise UsageError(f"the mixture has {name}, but rows of {row_length} tokens are too short for all of it")
        size = sum(source.size for source in fitting)
        for source in fitting:
            shares[source.name] += weight * source.size / size
    total = sum(shares.values())
    if not total:
        raise UsageError("the mixture must give a weight above 0 to a source that exists")
    return {name: share / total for name, share in shares.items() if share}
