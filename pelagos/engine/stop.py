"""Where the text of an answer ends: stop strings over token borders, whole characters only."""

from typing import Protocol

from pelagos.common.errors import TokenizerError


class Decoder(Protocol):
    """Ids in, text out, never half a character; ``pelagos.chat.tokenizer.IncrementalDecoder`` is one."""

    def push_one(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class StopMatcher:
    """Cuts a text, given in pieces, before the first stop string.

    First is the one that would be completed first if the text came one character at a time; of those completed by the
    same character, the longest. So how the text is cut into pieces changes nothing. Text that may be the beginning of a
    stop string is held back until that is decided.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.found: str | None = None
        # One that holds another before its own end can never be completed first.
        self._stops = [stop for stop in stops if not any(other in stop[:-1] for other in stops)]
        self._held = ""

    def push(self, piece: str) -> str:
        """Take the next piece and return the text that is now certain; nothing after a stop string."""
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        starts = [(text.find(stop), stop) for stop in self._stops]
        matches = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if matches:
            _, start, self.found = min(matches)
            self._held = ""
            return text[:start]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        certain = len(text) - num_held
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """End the text and return what was held back."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """The text of an answer, token by token: decoded, cut at stop strings. Without a decoder all text is empty."""

    def __init__(self, decoder: Decoder | None, stops: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._matcher = StopMatcher(stops)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._matcher.found

    def push(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain."""
        if self._decoder is None:
            return ""
        try:
            return self._matcher.push(self._decoder.push_one(token_id))
        except TokenizerError:  # an id that only pads the vocabulary to a round size has no text
            return ""

    def flush(self) -> str:
        """End the text and return the rest of it: what was held back, U+FFFD for an unfinished character."""
        if self._decoder is None:
            return ""
        return self._matcher.push(self._decoder.flush()) + self._matcher.flush()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, ``stop`` as a whole left out."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
