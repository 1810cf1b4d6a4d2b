"""dict: a long glossary; ask for the first words of one gloss."""

import re
from dataclasses import dataclass

from pelagos.common.errors import UsageError
from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases, is_held_out

ENTRY = re.compile(r"(?P<word>\S[^()\n]{0,60}) \((?P<pos>\w+)\): (?P<gloss>\S[^\n]*)")
MAX_TRIES = 1000

GLOSS = Phrases(
    training=(
        "a {} kind of {} with a {} on each {}",
        "the {} of a {} that has no {} or {}",
        "any {} made from {} and {} for the {}",
        "a {} or {} that is used to {} the {}",
        "the act of bringing {} to {} by {} and {}",
        "a {} place where {} and {} meet the {}",
        "of or about {}, mostly {} and {} but not {}",
        "to move a {} from one {} to the {} by {}",
    ),
    held_out=("whoever is {} enough to {} without {} and {}", "something {} between {} and {}, like a {}"),
)
ASK = Phrases(
    training=(
        "Give the first {n} words of the definition of {key}.",
        "How does the definition of {key} begin? Give {n} words.",
        "What does {key} mean? Give {n} words of its entry.",
        "Copy the first {n} words of the entry for {key}.",
        "Start the definition of {key} with its first {n} words.",
        "Look up {key}: what are the first {n} words?",
        "Define {key} in the first {n} words of the glossary.",
        "Quote the first {n} words about {key}.",
    ),
    held_out=("Open the glossary at {key} and read out {n} words.", "In {n} words from the glossary, what is {key}?"),
)


@dataclass(frozen=True, kw_only=True)
class DictKnobs(Knobs):
    num_entries: Span = setting((8, 64), help="entries of the glossary", low=1, high=4096)
    num_words: Span = setting((3, 6), help="words of the gloss that are asked for", low=1, high=12)


def build(draw: Draw, knobs: DictKnobs) -> Item:
    num_words = draw.size(knobs.num_words)
    entries: dict[str, tuple[str, str]] = {}
    for _ in range(draw.size(knobs.num_entries)):
        word, pos, gloss = _real_entry(draw, num_words) if draw.glosses else _invented_entry(draw)
        entries.setdefault(word, (pos, gloss))
    key = draw.rng.choice(list(entries))
    pos, gloss = entries[key]
    answer = " ".join(gloss.split()[:num_words])
    exchange = Exchange(
        question=draw.phrase(ASK).format(key=key, n=num_words),
        answer=answer,
        reasoning=f"The glossary says: {key} ({pos}): {answer}",
        cue=f"The first {num_words} words for {key} ({pos}):",
    )
    lines = "\n".join(f"{word} ({pos}): {gloss}" for word, (pos, gloss) in sorted(entries.items()))
    return Item(
        pieces=(Piece(text=lines, depth=draw.depth),),
        exchanges=(exchange,),
        grader="first_words",
        metadata={"keys": [key], "full": gloss, "num_entries": len(entries)},
    )


def _invented_entry(draw: Draw) -> tuple[str, str, str]:
    word = draw.name().lower()
    return word, draw.rng.choice(("noun", "verb", "adj", "adv")), draw.phrase(GLOSS).format(*draw.words(4).split())


def _real_entry(draw: Draw, num_words: int) -> tuple[str, str, str]:
    """An entry whose headword is on the right side of the split and whose gloss is long enough."""
    assert draw.glosses is not None
    for _ in range(MAX_TRIES):
        match = ENTRY.fullmatch(draw.glosses(draw.rng).strip())
        if match and is_held_out(match["word"]) == draw.held_out and len(match["gloss"].split()) >= num_words:
            return match["word"], match["pos"], match["gloss"]
    raise UsageError(
        f"the glosses must be lines 'word (pos): gloss' with at least {num_words} words; {MAX_TRIES} were not"
    )


DICT = Task(
    name="dict", summary="the start of a gloss in a long glossary", knobs=DictKnobs, build=build, phrases=(GLOSS, ASK)
)
