"""A task: what a task file registers, and how its samples are drawn and brought to their length."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError
from pelagos.training.tasks.compose import Form, compose, in_order
from pelagos.training.tasks.encoding import encode
from pelagos.training.tasks.filler import Filler, first_words, random_paragraph
from pelagos.training.tasks.item import Draw, Item, TextSource
from pelagos.training.tasks.knobs import Knobs, draw_depth, draw_size
from pelagos.training.tasks.sample import Kind, Sample
from pelagos.training.tasks.words import Phrases, word_pool

MAX_TRIES = 12  # each with half the sizes of the one before
USUAL_TOKENS = 256  # for the scale of depths, where a sample has no filler that could tell them apart

K = TypeVar("K", bound=Knobs)


@dataclass(frozen=True, kw_only=True)
class Task(Generic[K]):
    """``build`` makes the facts and questions; ``phrases`` are its ways to word them; ``kinds`` the forms it can take.

    ``thinks``: whether conversations may have thinking on. ``fills``: whether a target length is reached with filler;
    without it is a limit alone.
    """

    name: str
    summary: str
    knobs: type[K]
    build: Callable[[Draw, K], Item]
    phrases: tuple[Phrases, ...]
    kinds: tuple[Kind, ...] = ("text", "chat")
    thinks: bool = True
    fills: bool = True

    def make(
        self,
        rng: random.Random,
        knobs: K | None = None,
        *,
        tokenizer: Tokenizer,
        held_out: bool = False,
        haystack: TextSource | None = None,
        glosses: TextSource | None = None,
    ) -> Sample:
        """A sample that depends on the arguments alone.

        ``held_out``: from the test side of the split, words, names, numbers and wording. ``haystack``: gives pieces of
        real text to fill up with, None for random sentences. ``glosses``: gives lines ``word (pos): gloss`` to the
        ``dict`` task, None for invented ones. Raises ConfigError if not even the smallest sizes of the knobs fit into
        their ``target_tokens``.
        """
        knobs = self.knobs() if knobs is None else knobs
        num_tokens = None if knobs.target_tokens is None else draw_size(rng, knobs.target_tokens)
        depth = draw_depth(rng, knobs.depth, num_tokens or USUAL_TOKENS)
        form = self._form(rng, knobs, held_out, haystack is not None, depth, num_tokens)
        pool = word_pool(tokenizer, held_out)
        lengths: list[int] = []
        for attempt in range(MAX_TRIES):
            draw = Draw(rng=rng, held_out=held_out, depth=depth, pool=pool, shrink=0.5**attempt, glosses=glosses)
            item = self.build(draw, knobs)
            sample = compose(item, form)
            if num_tokens is None:
                return sample
            lengths.append(len(encode(sample, tokenizer)[0]))
            if lengths[-1] <= num_tokens and not self.fills:
                return sample
            if lengths[-1] <= num_tokens:
                filler = Filler(lambda: haystack(rng) if haystack else random_paragraph(rng, pool), tokenizer)
                return _fill_up(item, form, filler, num_tokens - lengths[-1], num_tokens, tokenizer)
        raise ConfigError(
            f"target_tokens must be at least {min(lengths)} for this sample of the task {self.name}, got {num_tokens}"
        )

    def _form(
        self, rng: random.Random, knobs: K, held_out: bool, real: bool, depth: float, num_tokens: int | None
    ) -> Form:
        chat, thinking, cue = (rng.random() for _ in range(3))
        kind: Kind = ("chat" if chat < knobs.chat_share else "text") if len(self.kinds) > 1 else self.kinds[0]
        return Form(
            task=self.name,
            kind=kind,
            held_out=held_out,
            thinking=kind == "chat" and self.thinks and thinking < knobs.thinking_share,
            cue=cue < knobs.cue_share,
            real=real,
            depth=depth,
            num_tokens=num_tokens,
            knobs=knobs,
        )


def _fill_up(item: Item, form: Form, filler: Filler, num_filler: int, num_tokens: int, tokenizer: Tokenizer) -> Sample:
    """The sample with ``num_filler`` tokens of filler, so much of it before each piece as the piece's depth says."""
    gaps: list[str] = []
    done = 0
    for depth in [*(piece.depth for piece in in_order(item)), 1.0]:
        text, taken = filler.take(round(depth * num_filler) - done)
        gaps.append(text)
        done += taken
    while True:
        sample = compose(item, form, gaps)
        excess = len(encode(sample, tokenizer)[0]) - num_tokens
        if excess <= 0:
            return sample
        # Tokens of pieces encoded one by one are nearly always as many as, or more than, those of the whole text.
        longest = max(range(len(gaps)), key=lambda i: len(gaps[i]))
        keep = len(tokenizer.encode(gaps[longest])) - excess
        gaps[longest] = first_words(gaps[longest].strip(), keep, tokenizer)[0].rstrip() + "\n"
