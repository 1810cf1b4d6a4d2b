"""Shares of sources, and streams of parts of documents."""

import logging
from collections import Counter

import numpy as np
import pytest
from data_cases import CountingSource

from pelagos.common.errors import UsageError
from pelagos.training.mixture import Mixture, Part, Stream, token_shares

TEXT_A, TEXT_B = CountingSource(0, "text", 300.0), CountingSource(1, "text", 100.0)
RECALL, CHAT = CountingSource(2, "recall", 2.0), CountingSource(3, "chat", min_row=50)
SOURCES = [TEXT_A, TEXT_B, RECALL, CHAT]


def tokens(part: Part) -> list[int]:
    ids: list[int] = part.document.token_ids.tolist()
    return ids


# --- shares ---


def test_a_group_shares_by_size() -> None:
    shares = token_shares(SOURCES, {"text": 3.0, "recall": 1.0, "chat": 0.0, "nothing of this name": 0.0})
    assert shares == pytest.approx({"text-0": 0.5625, "text-1": 0.1875, "recall-2": 0.25})


def test_a_single_source_may_have_a_weight_beside_its_group() -> None:
    shares = token_shares(SOURCES, {"text": 0.5, "text-1": 0.5})
    assert shares == pytest.approx({"text-0": 0.375, "text-1": 0.625})


def test_what_does_not_fit_leaves_its_share_to_the_rest_of_its_group() -> None:
    sources = [*SOURCES, CountingSource(4, "chat", min_row=10)]
    weights = {"text": 0.5, "chat": 0.5}
    assert token_shares(sources, weights, 49) == pytest.approx({"text-0": 0.375, "text-1": 0.125, "chat-4": 0.5})
    assert token_shares(sources, weights, 50)["chat-3"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"text": 1.0, "chess": 0.1}, "names 'chess', but there is no source or group but chat, chat-3, recall"),
        ({"text": -0.1}, "weight of text .* at least 0, got -0.1"),
        ({"text": float("nan")}, "weight of text"),
        ({"text": 0.0}, "weight above 0"),
        ({}, "weight above 0"),
        ({"text": 1.0, "chat": 0.1}, "has chat, but rows of 49 tokens are too short"),
    ],
)
def test_mixtures_that_cannot_be(weights: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        token_shares(SOURCES, weights, 49)


def test_every_source_has_its_share_of_tokens_at_any_moment() -> None:
    mixture = Mixture(SOURCES, num_open=4)
    weights = {"text": 0.6, "recall": 0.3, "chat": 0.1}
    mixture.aim(weights, 64, [])
    count: Counter[str] = Counter()
    for _ in range(300):
        part = mixture.take()
        count[part.source.name] += len(part)
        # Nobody is further from its share than what some takes can amount to, however long it goes on.
        for name, share in token_shares(SOURCES, weights).items():
            assert abs(count[name] - share * count.total()) < 3 * 64


def test_a_new_aim_counts_from_then_on_with_what_waits() -> None:
    mixture = Mixture(SOURCES, num_open=4)
    mixture.aim({"text": 1.0}, 64, [])
    waiting = [mixture.take() for _ in range(40)]
    mixture.aim({"text": 0.5, "recall": 0.5}, 64, waiting)
    taken = [mixture.take() for _ in range(400)]
    total = sum(map(len, waiting + taken))
    assert sum(len(part) for part in taken if part.source is RECALL) == pytest.approx(0.5 * total, abs=64)
    before = mixture.state_dict()
    mixture.aim({"recall": 0.5, "text": 0.5}, 64, [])  # no other aim: counts go on
    assert mixture.state_dict() == before


def test_what_does_not_fit_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    sources = [*SOURCES, CountingSource(4, "chat")]
    mixture = Mixture(sources, num_open=4)
    with caplog.at_level(logging.WARNING):
        mixture.aim({"chat": 1.0}, 20, [])
        mixture.aim({"chat": 1.0}, 20, [])
    assert [record.getMessage() for record in caplog.records] == ["rows of 20 tokens are too short for chat-3"]


# --- streams ---


def test_documents_are_read_side_by_side_and_each_from_start_to_end() -> None:
    source = CountingSource(0, "text", num_documents=60)
    stream = Stream(source, num_open=10)
    parts = [stream.take(16) for _ in range(300)]
    assert len({part.number for part in parts[:10]}) == 10
    assert max(map(len, parts)) == 16
    read: dict[int, list[int]] = {}
    for part in parts:
        assert part.start == len(read.setdefault(part.number, []))
        read[part.number] += tokens(part)
    done = [number for number in read if len(read[number]) == len(source.document(number, 16))]
    assert len(done) >= len(read) - 10
    for number, ids in read.items():
        assert ids == source.document(number, 16).token_ids.tolist()[: len(ids)]


def test_the_length_of_rows_may_change() -> None:
    source = CountingSource(0, "text", num_documents=3)
    stream = Stream(source, num_open=1)
    parts = [stream.take(length) for length in (7, 50, 1, 3, 1000, 40, 9, 9, 9, 9)]
    whole = [token for number in range(8) for token in source.document(number, 1).token_ids.tolist()]
    read = [token for part in parts for token in tokens(part)]
    assert read == whole[: len(read)]


def test_of_a_source_without_end_one_document_is_open() -> None:
    stream = Stream(CountingSource(0, "recall"), num_open=10)
    assert [stream.take(100).number for _ in range(5)] == [0, 1, 2, 3, 4]
    assert stream.num_opened == 5


def test_few_documents_are_not_opened_twice_at_a_time() -> None:
    stream = Stream(CountingSource(0, "text", num_documents=3), num_open=10)
    stream.take(5)
    assert stream.num_opened == 3


@pytest.mark.parametrize("cursor", [[-1, 8, 0, 1], [0, 0, 0, 1], [0, 8, -1, 1], [0, 8, 0, 0], [2, 8, 0, 76]])
def test_places_that_are_not_there(cursor: list[int]) -> None:
    with pytest.raises(ValueError, match="source text-0"):
        Part.at(CountingSource(0, "text"), cursor)  # document 2 has 75 tokens


def test_a_part_is_found_again() -> None:
    source = CountingSource(0, "text")
    part = Part.at(source, [2, 8, 0, 75]).part(5, 30).part(3, 10)
    assert part.cursor() == [2, 8, 8, 7]
    np.testing.assert_array_equal(part.document.token_ids, source.document(2, 8).token_ids[8:15])
    assert Part.at(source, part.cursor()).document.token_ids.tolist() == tokens(part)
