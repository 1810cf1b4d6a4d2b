"""What the synthetic tasks are made of: words, names and numbers, each for training or for the test set, never both.

The split is by hash: a word, name or number for which ``is_held_out`` is true occurs in no training sample as something
to be recalled; test samples ask for nothing else. Wording is split too: see ``Phrases``.
"""

import functools
import hashlib
import itertools
import keyword
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pelagos.chat.tokenizer import Tokenizer

HELD_OUT_ONE_IN = 8
SYLLABLE_STARTS = (
    "b",
    "br",
    "d",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "r",
    "s",
    "st",
    "t",
    "v",
    "z",
)
OPENINGS = (
    "One question:",
    "Now this:",
    "Next one.",
    "Well,",
    "So:",
    "And now:",
    "Tell me:",
    "Look again.",
    "I have a question.",
    "I am curious.",
    "Be exact.",
    "Quick question.",
    "Help me, please.",
    "Here is what I want to know.",
    "I am not sure.",
    "Good.",
    "Thanks.",
    "Let us see.",
    "A small task for you:",
    "Dear Pelagos,",
    "OK,",
    "Please:",
    "You have read it all.",
    "Could you help?",
    "From what you read,",
    "In the lines above,",
    "Going by the text,",
    "As the notes have it,",
    "If you look it up,",
    "With all that in mind,",
    "After reading this,",
)
STATEMENT_OPENINGS = (
    "As you may have heard,",
    "In case you wonder,",
    "For the record:",
    "A short note:",
    "It is true that",
    "Nobody doubts that",
    "Someone told me that",
    "Do not ask me why, but",
    "Here is a fact:",
    "So far",
    "They agree that",
    "Since last week",
)
CLOSINGS = (
    "Thank you.",
    "Be brief.",
    "Only the answer.",
    "I am waiting.",
    "It is important.",
    "That is all.",
    "Do you know?",
    "Please be quick.",
)
MIN_SPLIT_DIGITS = 4  # shorter numbers are too few to be split: they are counts, line numbers, operands
MIN_POOL = 1024
MAX_POOL = 4096
UNWANTED = {
    "drug",
    "drugs",
    "kill",
    "killed",
    "nazi",
    "porn",
    "rape",
    "sex",
    "sexual",
    "slave",
    "suicide",
    *keyword.kwlist,
}
PLAIN_WORD = re.compile(rb" [a-z]{3,10}")
ENDING = re.compile(rb"[a-z]{2,6}")


def is_held_out(key: str) -> bool:
    """Whether a word, name, number (as written) or question belongs to the test set: one in eight does."""
    digest = hashlib.blake2b(key.strip().lower().encode(), digest_size=4, person=b"pelagos").digest()
    return int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """Ways to say one thing: at least six for training and exactly two for the test set, with the same fields."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.training) >= 6, self.training
        assert len(self.held_out) == 2, self.held_out
        assert not {*self.training} & {*self.held_out}, self.held_out

    def pick(self, rng: random.Random, held_out: bool) -> str:
        return rng.choice(self.held_out if held_out else self.training)


@functools.lru_cache(maxsize=8)
def word_pool(tokenizer: Tokenizer, held_out: bool) -> tuple[str, ...]:
    """The words of one side of the split, the same for the same vocabulary.

    The commonest 4,096 entries of the vocabulary that are a space and 3 to 10 small letters, so that behind a space
    each is a single token (many are parts of words); none of them a keyword of Python. A vocabulary with few of them
    is filled up to 1,024 with invented words of several tokens. For training there are as many compounds beside them.
    """
    words = _plain_words(tokenizer, PLAIN_WORD)[:MAX_POOL]
    invented = ("".join(parts) for parts in itertools.product("bdfgklmnprst", "aeiou", "klmnrstvz", "aeiou"))
    words += itertools.islice(invented, max(0, MIN_POOL - len(words)))
    if not held_out:
        words += _compounds(tokenizer, words)
    return tuple(w for w in dict.fromkeys(words) if w not in UNWANTED and is_held_out(w) == held_out)


def _compounds(tokenizer: Tokenizer, words: list[str]) -> list[str]:
    """Every word, of both sides, with an ending: so that each entry of the vocabulary is now and then an answer. Else a
    model unlearns, token by token, to say those that never are, and with them all words of the test side."""
    endings = _plain_words(tokenizer, ENDING)[:MAX_POOL]
    random.Random("endings").shuffle(endings)
    turns = itertools.cycle(endings)
    return [made for word in words if (made := _compound(tokenizer, word, itertools.islice(turns, 16)))]


def _compound(tokenizer: Tokenizer, word: str, endings: Iterable[str]) -> str | None:
    """A word of the training side that begins with the tokens of ``word``."""
    start = tokenizer.encode(f" {word}")
    for ending in endings:
        if not is_held_out(word + ending) and tokenizer.encode(f" {word}{ending}")[: len(start)] == start:
            return word + ending
    return None


def _plain_words(tokenizer: Tokenizer, pattern: re.Pattern[bytes]) -> list[str]:
    """Entries of the vocabulary of this form that a text can have, commonest first, without the space before them."""
    entries = (token_id for token_id in range(tokenizer.vocab_size) if token_id not in tokenizer.special_ids)
    found = (token_id for token_id in entries if pattern.fullmatch(_bytes(tokenizer, token_id)))
    return [text.strip() for i in found if tokenizer.encode(text := tokenizer.decode([i])) == [i]]


def _bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.token_bytes(token_id)
    except ValueError:  # an id that the vocabulary leaves unused
        return b""


def name(rng: random.Random, held_out: bool) -> str:
    """An invented name of two or three syllables, such as ``Marolin``: of a person, a place or a thing."""
    while True:
        syllables = [rng.choice(SYLLABLE_STARTS) + rng.choice("aeiou") for _ in range(rng.choice((2, 3)))]
        made = "".join(syllables).capitalize() + rng.choice(("", "n", "r", "s", "th"))
        if is_held_out(made) == held_out:
            return made


def number(rng: random.Random, num_digits: int, held_out: bool) -> int:
    """A number of so many digits, from one side of the split if it has at least four."""
    while True:
        made = rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits)
        if num_digits < MIN_SPLIT_DIGITS or is_held_out(str(made)) == held_out:
            return made


def may_train(value: int) -> bool:
    """Whether a number may occur in training."""
    return abs(value) < 10 ** (MIN_SPLIT_DIGITS - 1) or not is_held_out(str(abs(value)))


def capital(text: str) -> str:
    """``text`` with a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]
