"""Stop strings against a matcher that looks at one character at a time, for every cut of the text."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import PieceDecoder

from pelagos.common.errors import TokenizerError
from pelagos.engine.stop import StopMatcher, TextStream

texts = st.text(alphabet="ab", max_size=14)
stop_sets = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=0, max_size=3).map(tuple)


def cut_at(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: grow the text by one character until it ends in a stop string; the longest one wins."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def pieces_of(text: str, cuts: tuple[int, ...]) -> list[str]:
    borders = [0, *cuts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(borders)]


@settings(max_examples=500)
@given(text=texts, stops=stop_sets, data=st.data())
def test_every_cut_of_a_text_gives_the_same_end(text: str, stops: tuple[str, ...], data: st.DataObject) -> None:
    cuts = tuple(sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6))))
    matcher = StopMatcher(stops)
    released = "".join(matcher.push(piece) for piece in pieces_of(text, cuts)) + matcher.flush()
    assert (released, matcher.found) == cut_at(text, stops)


@settings(max_examples=500)
@given(text=texts, stops=stop_sets)
def test_just_what_a_stop_string_could_still_cut_is_held_back(text: str, stops: tuple[str, ...]) -> None:
    matcher = StopMatcher(stops)
    released = matcher.push(text)
    if matcher.found is None:
        futures = ["", *(stop[n:] for stop in stops for n in range(len(stop)))]
        shortest = min(len(cut_at(text + future, stops)[0]) for future in futures)
        assert released == text[:shortest]


def test_all_cuts_of_one_text_into_up_to_three_pieces() -> None:
    text, stops = "one <end> two <end>", ("<end>", "<en>", "two")
    for cuts in itertools.combinations(range(len(text) + 1), 2):
        matcher = StopMatcher(stops)
        assert "".join(matcher.push(piece) for piece in pieces_of(text, cuts)) == "one "
        assert matcher.found == "<end>"
        assert matcher.flush() == ""


def test_nothing_follows_a_stop_string() -> None:
    matcher = StopMatcher(("!",))
    assert matcher.push("a!b") == "a"
    assert matcher.push("c") + matcher.flush() == ""


def test_a_stream_holds_half_characters_and_matches_stops_of_any_bytes() -> None:
    data = "Grüße 🙂 Ende".encode()
    for cuts in itertools.combinations(range(len(data) + 1), 2):
        borders = [0, *cuts, len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(borders)]
        stream = TextStream(PieceDecoder(pieces), ("🙂 E",))
        texts = [stream.push(i) for i in range(len(pieces))]
        assert "".join(texts) + stream.flush() == "Grüße "
        assert stream.stop_string == "🙂 E"


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character() -> None:
    stream = TextStream(PieceDecoder([b"a", "🙂".encode()[:3]]), ())
    assert (stream.push(0), stream.push(1), stream.flush()) == ("a", "", "\ufffd")


def test_an_id_without_a_vocabulary_entry_has_no_text() -> None:
    class Sparse(PieceDecoder):
        def push_one(self, token_id: int) -> str:
            if token_id == 1:
                raise TokenizerError("token id 1 is not in the vocabulary")
            return super().push_one(token_id)

    stream = TextStream(Sparse([b"a", b"?", b"b"]), ())
    assert [stream.push(i) for i in range(3)] == ["a", "", "b"]


@pytest.mark.parametrize("stops", [(), ("x",)])
def test_without_a_decoder_there_is_no_text(stops: tuple[str, ...]) -> None:
    stream = TextStream(None, stops)
    assert stream.push(5) + stream.flush() == ""
