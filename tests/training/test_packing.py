"""Packing against a slow, literal best fit, and batches against a loop over tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pelagos.training.batch import PADDING
from pelagos.training.packing import Document, TokenTable, best_fit_decreasing, cut, pack, padding_share, to_batch

VOCAB_SIZE = 5000
TABLE = TokenTable(num_bytes=np.r_[0, np.arange(1, VOCAB_SIZE) % 5].astype(np.int32), padding_id=0)


def numbered(lengths: list[int]) -> list[Document]:
    """Documents of these lengths; no two tokens of them are the same, none is 0."""
    starts = np.cumsum([1, *lengths])
    return [
        Document(token_ids=np.arange(start, start + n), loss_weights=np.linspace(0.1, 1, n, dtype=np.float32))
        for start, n in zip(starts, lengths, strict=False)
    ]


documents = st.lists(st.integers(1, 60), max_size=40).map(numbered)
row_lengths = st.integers(1, 40)


def slow_best_fit(lengths: list[int], row_length: int) -> list[list[int]]:
    """The definition: look at every row for each document."""
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [row_length - sum(lengths[i] for i in row) for row in rows]
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[index]]
        if fitting:
            rows[min(fitting, key=lambda row: (rooms[row], row))].append(index)
        else:
            rows.append([index])
    return [sorted(row) for row in rows]


def test_best_fit_by_hand() -> None:
    assert best_fit_decreasing([2, 5, 4, 6, 3], 10) == [[2, 3], [0, 1, 4]]
    assert best_fit_decreasing([10, 1, 10], 10) == [[0], [2], [1]]
    assert best_fit_decreasing([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 70))
def test_best_fit_is_the_definition(lengths: list[int], row_length: int) -> None:
    assert best_fit_decreasing(lengths, row_length) == slow_best_fit(lengths, row_length)


@pytest.mark.parametrize("length", [0, 11])
def test_best_fit_wants_documents_that_fit(length: int) -> None:
    with pytest.raises(AssertionError, match="cut it first"):
        best_fit_decreasing([3, length], 10)


def test_cut() -> None:
    assert cut(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert cut(6, 3) == [(0, 3), (3, 6)]
    assert cut(2, 3) == [(0, 2)]


@given(documents, row_lengths)
def test_every_token_is_packed_once_and_no_row_overflows(documents: list[Document], row_length: int) -> None:
    rows = pack(documents, row_length)
    packed = [int(token) for row in rows for document in row for token in document.token_ids]
    assert sorted(packed) == [int(token) for document in documents for token in document.token_ids]
    assert all(1 <= sum(map(len, row)) <= row_length for row in rows)
    # A part is a piece of one document, starts at a multiple of the row length, and keeps its weights.
    where = {int(t): (d, i) for d, document in enumerate(documents) for i, t in enumerate(document.token_ids)}
    for part in (part for row in rows for part in row):
        number, start = where[int(part.token_ids[0])]
        assert start % row_length == 0
        whole = documents[number]
        assert len(part) == min(row_length, len(whole) - start)
        np.testing.assert_array_equal(part.token_ids, whole.token_ids[start : start + len(part)])
        np.testing.assert_array_equal(part.loss_weights, whole.loss_weights[start : start + len(part)])
    num_tokens = sum(map(len, documents))
    if rows:
        assert padding_share(rows, row_length) == pytest.approx(1 - num_tokens / (len(rows) * row_length))


def test_padding_is_small_when_short_documents_abound() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 400).tolist()
    assert padding_share(pack(numbered(lengths), 256), 256) < 0.02


def test_padding_share_of_nothing() -> None:
    assert padding_share([], 8) == 0.0


def test_batch_by_hand() -> None:
    first, second, third = numbered([3, 2, 4])
    batch = to_batch([[first, second], [third]], 6, TABLE)
    assert batch.token_ids.tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 0, 0]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, PADDING], [0, 0, 0, 0, PADDING, PADDING]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    expected = [[0, 0.55, 1, 0, 1, 0], [0, 0.4, 0.7, 1, 0, 0]]
    torch.testing.assert_close(batch.loss_weights, torch.tensor(expected))
    assert batch.num_bytes.tolist() == [[1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 0, 0]]
    types = torch.int64, torch.int32, torch.int64, torch.float32, torch.int32
    assert tuple(value.dtype for value in vars(batch).values()) == types
    assert batch.num_tokens == 9


@given(documents, row_lengths)
def test_batch_is_what_a_loop_over_tokens_gives(documents: list[Document], row_length: int) -> None:
    rows = pack(documents, row_length)
    batch = to_batch(rows, row_length, TABLE)
    assert batch.token_ids.shape == (len(rows), row_length)
    for row, parts in enumerate(rows):
        expected = [
            (int(token), number, position, 0.0 if position == 0 else float(part.loss_weights[position]))
            for number, part in enumerate(parts)
            for position, token in enumerate(part.token_ids)
        ]
        expected += [(0, PADDING, 0, 0.0)] * (row_length - len(expected))
        columns = batch.token_ids, batch.document_ids, batch.positions, batch.loss_weights
        assert list(zip(*(column[row].tolist() for column in columns), strict=True)) == expected
        assert batch.num_bytes[row].tolist() == [int(TABLE.num_bytes[token]) for token, *_ in expected]


def test_batch_refuses_ids_outside_the_vocabulary() -> None:
    document = Document(token_ids=np.array([1, VOCAB_SIZE]), loss_weights=np.ones(2, dtype=np.float32))
    with pytest.raises(IndexError):
        to_batch([[document]], 4, TABLE)
