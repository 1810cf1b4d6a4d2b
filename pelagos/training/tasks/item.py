"""What a task file makes: the facts, the questions and the answers; ``compose`` makes a sample of them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pelagos.training.tasks import words
from pelagos.training.tasks.knobs import Span, draw_size
from pelagos.training.tasks.sample import Call

TextSource: TypeAlias = Callable[[random.Random], str]

UNKNOWN = "I don't know."

# How often training has something before a question, behind it, before a fact, and another word in either.
OPENED, CLOSED, INTRODUCED, REWORDED = 0.5, 0.15, 0.3, 0.3


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One or more lines to be placed in the filler at a depth from 0 to 1; pieces of equal depth keep their order."""

    text: str
    depth: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the assistant does before it answers: tool calls, the result of each, and the reasoning before them."""

    calls: tuple[Call, ...]
    results: tuple[str, ...]
    reasoning: str


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its answer.

    ``cue``: the start of a line that the answer completes, for plain text. ``lead``: how an assistant's turn starts
    before the answer. A word behind a space is another token than the same word at the start of a turn, so without a
    lead the first word of an answer has to be spelled, not copied, which takes a small model far longer to learn.
    """

    question: str
    answer: str
    reasoning: str = ""
    cue: str | None = None
    lead: str | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """``quick``: spelling of a quick-instruction token and what follows it; ``exchanges`` is then the talk before, the
    last question of which may have an empty answer: the token follows the question. ``connected``: later exchanges
    need the earlier ones, so that these stay also where only the last one can be learned."""

    exchanges: tuple[Exchange, ...]
    pieces: tuple[Piece, ...] = ()
    grader: str = "exact"
    tools: tuple[str, ...] = ()
    quick: tuple[str, str] | None = None
    connected: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The dice for one sample, all of it from one side of the train/test split.

    ``depth``: where the fact that is asked for goes; ``pool``: words; ``shrink``: at most 1, how much of each range of
    sizes may be used; ``glosses``: gives lines ``word (pos): gloss``, None for invented ones.
    """

    rng: random.Random
    held_out: bool
    depth: float
    pool: tuple[str, ...]
    shrink: float = 1.0
    glosses: TextSource | None = None

    def size(self, span: Span) -> int:
        low, high = span
        return draw_size(self.rng, (low, max(low, int(high * self.shrink))))

    def phrase(self, phrases: words.Phrases) -> str:
        return phrases.pick(self.rng, self.held_out)

    def question(self, phrases: words.Phrases) -> str:
        """A phrase that asks, in training often with something before or behind it that does not matter, or with
        another word in it: so that what is asked for is found wherever it stands and however the rest is worded."""
        if self.held_out:
            return self.phrase(phrases)
        asked = self._reworded(self.phrase(phrases))
        if self.rng.random() < OPENED:
            asked = _behind(self.rng.choice(words.OPENINGS), asked)
        if self.rng.random() < CLOSED:
            asked = f"{asked} {self.rng.choice(words.CLOSINGS)}"
        return asked

    def statement(self, phrases: words.Phrases) -> str:
        """A phrase that tells a fact, in training varied as ``question`` varies."""
        if self.held_out:
            return self.phrase(phrases)
        told = self._reworded(self.phrase(phrases))
        return _behind(self.rng.choice(words.STATEMENT_OPENINGS), told) if self.rng.random() < INTRODUCED else told

    def _reworded(self, phrase: str) -> str:
        """Now and then one word of the phrase is any other word."""
        parts = phrase.split(" ")
        plain = [i for i, part in enumerate(parts) if part.isalpha()]
        if plain and self.rng.random() < REWORDED:
            i = self.rng.choice(plain)
            other = self.words(1)
            parts[i] = words.capital(other) if parts[i][0].isupper() else other
        return " ".join(parts)

    def words(self, count: int) -> str:
        """So many words with spaces between."""
        return " ".join(self.rng.choices(self.pool, k=count))

    def distinct(self, count: int, num_words: Span = (1, 1)) -> list[str]:
        """``count`` different words, or groups of as many words as the range says, more where words run out."""
        found: dict[str, None] = {}
        while len(found) < count:
            low, high = num_words
            key = self.words(draw_size(self.rng, num_words))
            if key in found and 2 * len(found) > len(self.pool) ** low:
                num_words = (low + 1, max(high, low + 1))
            found[key] = None
        return list(found)

    def name(self) -> str:
        return words.name(self.rng, self.held_out)

    def names(self, count: int) -> list[str]:
        return _different(count, self.name)

    def distinct_spelled(self, count: int) -> list[str]:
        return _different(count, self.spelled)

    def number(self, num_digits: int) -> int:
        return words.number(self.rng, num_digits, self.held_out)

    def spelled(self) -> str:
        """A name or a number of 4 to 7 digits: of several tokens each, which have to be copied one after the other."""
        return self.name() if self.rng.random() < 0.5 else str(self.number(self.rng.randint(4, 7)))

    def value(self, num_tokens: int) -> str:
        """So many words, or from four tokens on as likely a number of so many digits."""
        if num_tokens >= words.MIN_SPLIT_DIGITS and self.rng.random() < 0.5:
            return str(self.number(num_tokens))
        return self.words(num_tokens)


def _different(count: int, draw: Callable[[], str]) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[draw()] = None
    return list(found)


def _behind(opening: str, phrase: str) -> str:
    """A phrase behind an opening; one that the opening goes on into starts with a small letter."""
    goes_on = opening[-1] not in ".:" and not phrase.startswith(("{", "I "))
    return f"{opening} {phrase[0].lower() + phrase[1:] if goes_on else phrase}"
