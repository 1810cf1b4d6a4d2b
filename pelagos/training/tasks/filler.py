"""Text to fill a sample with, measured in tokens: a real haystack, or random sentences."""

import random
from collections.abc import Callable

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import UsageError

MAX_CHARS_PER_TOKEN = 16  # no more of a long text is encoded than can be needed
MIN_TOKENS = 8  # fewer are left unfilled
MAX_EMPTY = 1000
SENTENCES = (
    "The {} {} was near the {}.",
    "A {} and a {} came with some {}.",
    "They put {} on the {} and went to {}.",
    "In the {} there is no {} but much {}.",
    "Every {} has its {} and its {}.",
    "After the {} we saw {} and {}.",
)


def random_paragraph(rng: random.Random, pool: tuple[str, ...]) -> str:
    """Ten to twenty sentences of random words, without a fact in them."""
    templates = rng.choices(SENTENCES, k=rng.randint(10, 20))
    return " ".join(template.format(*rng.choices(pool, k=3)) for template in templates)


class Filler:
    """Gives text by the token, and goes on in the same piece of text where the last ``take`` ended."""

    def __init__(self, next_piece: Callable[[], str], tokenizer: Tokenizer) -> None:
        self._next_piece = next_piece
        self._tokenizer = tokenizer
        self._rest = ""

    def take(self, num_tokens: int) -> tuple[str, int]:
        """Whole words with a line end behind them, at most ``num_tokens`` tokens and few less, and their number.

        Tokens are counted piece by piece; each is encoded once or twice, so the time is linear. Raises UsageError if
        the source gives nothing but empty pieces.
        """
        lines: list[str] = []
        left = num_tokens
        while left >= MIN_TOKENS:
            text = self._rest or self._new_piece()
            head = text[: left * MAX_CHARS_PER_TOKEN]
            kept, length = first_words(head, left, self._tokenizer)
            if not kept:
                break
            self._rest = text[len(kept) :].strip()
            lines.append(kept.rstrip() + "\n")
            left -= length
        return "".join(lines), num_tokens - left

    def _new_piece(self) -> str:
        for _ in range(MAX_EMPTY):
            if piece := self._next_piece().strip():
                return piece
        raise UsageError(f"the haystack gave {MAX_EMPTY} empty pieces of text one after the other")


def first_words(text: str, num_tokens: int, tokenizer: Tokenizer) -> tuple[str, int]:
    """The longest start of ``text`` that ends at the end of a word and, with a line end, has at most ``num_tokens``.

    Also returns its number of tokens; "" and 0 if not one character fits. Text without spaces is cut between letters.
    """
    ids = tokenizer.encode(text + "\n")
    if len(ids) <= num_tokens:
        return text, len(ids)
    for num_kept in range(num_tokens - 1, 0, -1):
        kept = tokenizer.decode_bytes(ids[:num_kept]).decode("utf-8", errors="ignore")
        if not text[len(kept) : len(kept) + 1].isspace():
            kept = kept[: 1 + max(kept.rfind(" "), kept.rfind("\n"))].strip() or kept
        length = len(tokenizer.encode(kept.rstrip() + "\n"))
        if length <= num_tokens:
            return kept, length
    return "", 0
