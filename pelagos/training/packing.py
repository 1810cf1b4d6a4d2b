"""Documents into rows of equal length with little padding, and rows into batches.

Best-fit decreasing: the longest document first, each into the row with the least room that still holds it. A document
longer than a row is cut first; each part is a document of its own.

Shapes: B rows, T tokens a row, V vocabulary, n tokens of a document.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pelagos.training.batch import PADDING, PackedBatch


@dataclass(frozen=True, kw_only=True)
class Document:
    """token_ids: [n] integers, n >= 1. loss_weights: [n] float32, weight of predicting each token; the first one's is
    ignored, for nothing stands before it."""

    token_ids: NDArray[Any]
    loss_weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.token_ids)

    def part(self, start: int, stop: int) -> "Document":
        """Tokens start .. stop as a document of its own; a view."""
        return Document(token_ids=self.token_ids[start:stop], loss_weights=self.loss_weights[start:stop])


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """What a batch needs to know of the vocabulary. num_bytes: [V] int32, bytes of text behind each token, 0 for a
    special one. padding_id: the token that fills rows."""

    num_bytes: NDArray[np.int32]
    padding_id: int


def cut(num_tokens: int, row_length: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of a document: whole rows, then the rest."""
    return [(start, min(start + row_length, num_tokens)) for start in range(0, num_tokens, row_length)]


def best_fit_decreasing(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Which documents go into each row: numbers into ``lengths``, each in 1 .. row_length, rising within a row.

    Among equal lengths the first goes first, among rows of equal room the oldest is filled; O(n log n).
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), rising, of rows that are not full
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        assert 0 < length <= row_length, "a document must have 1 to row_length tokens: cut it first"
        place = bisect_left(room, (length, 0))
        if place < len(room):
            left, row = room.pop(place)
            rows[row].append(index)
        else:
            left, row = row_length, len(rows)
            rows.append([index])
        if left > length:
            insort(room, (left - length, row))
    return [sorted(row) for row in rows]


def pack(documents: Iterable[Document], row_length: int) -> list[list[Document]]:
    """All of the documents, cut where they must be, in as few rows as best fit finds."""
    parts = [document.part(*ends) for document in documents for ends in cut(len(document), row_length)]
    return [[parts[i] for i in row] for row in best_fit_decreasing([len(part) for part in parts], row_length)]


def padding_share(rows: Sequence[Sequence[Document]], row_length: int) -> float:
    """Share of the places of ``rows`` that no document fills."""
    num_tokens = sum(len(document) for row in rows for document in row)
    return 1 - num_tokens / (len(rows) * row_length) if rows else 0.0


def to_batch(rows: Sequence[Sequence[Document]], row_length: int, table: TokenTable) -> PackedBatch:
    """Each row's documents side by side, then padding. Raises IndexError for an id outside the vocabulary."""
    shape = len(rows), row_length
    token_ids = np.full(shape, table.padding_id, dtype=np.int64)
    document_ids = np.full(shape, PADDING, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int64)
    loss_weights = np.zeros(shape, dtype=np.float32)
    count = np.arange(row_length)
    for row, documents in enumerate(rows):
        start = 0
        for number, document in enumerate(documents):
            stop = start + len(document)
            assert stop <= row_length, "the documents of a row must fit into it"
            token_ids[row, start:stop] = document.token_ids
            document_ids[row, start:stop] = number
            positions[row, start:stop] = count[: stop - start]
            loss_weights[row, start + 1 : stop] = document.loss_weights[1:]
            start = stop
    num_bytes = np.where(document_ids >= 0, table.num_bytes[token_ids], 0).astype(np.int32)
    return PackedBatch(
        token_ids=torch.from_numpy(token_ids),
        document_ids=torch.from_numpy(document_ids),
        positions=torch.from_numpy(positions),
        loss_weights=torch.from_numpy(loss_weights),
        num_bytes=torch.from_numpy(num_bytes),
    )
