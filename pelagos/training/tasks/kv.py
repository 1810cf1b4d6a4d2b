"""kv: many key-value pairs, then questions for the values of some. Multi-query associative recall."""

from collections.abc import Mapping
from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

ASK = Phrases(
    training=(
        "What is the value of {key}?",
        "Which value does {key} have?",
        "Tell me the value of {key}.",
        "Look up {key} in the list.",
        "Find {key} and give its value.",
        "Give the value that belongs to {key}.",
        "What stands behind {key}?",
        "Return the entry for {key}.",
        "{key}?",
        "What is {key}?",
        "{key} has which value?",
        "And {key}?",
        "The value of {key}, please.",
        "I am looking for {key}.",
        "What did the list say about {key}?",
        "How does the line of {key} go on?",
        "What comes after {key}?",
        "Which entry does {key} have in the list?",
        "Read me the line that begins with {key}.",
        "What was noted for {key}?",
        "Do you see {key}? What is its value?",
        "Say what {key} stands for.",
        "Go to {key} and tell me what is there.",
        "Now the one for {key}.",
        "What belongs to {key} here?",
        "Check {key}.",
        "For {key}, what is given?",
        "I want the value that goes with {key}.",
    ),
    held_out=("Please read out the value stored for {key}.", "According to the list, what is {key}?"),
)


@dataclass(frozen=True, kw_only=True)
class KvKnobs(Knobs):
    num_pairs: Span = setting((4, 32), help="pairs in the list", low=1, high=4096)
    key_words: Span = setting((1, 3), help="words of a key, each a token where the vocabulary has it", low=1, high=3)
    value_words: Span = setting((1, 4), help="words of a value; four may be a number instead", low=1, high=4)
    spelled_share: float = setting(
        0.0, help="share of lists whose keys, and of values that, are names or numbers of several tokens", low=0, high=1
    )
    num_queries: Span = setting((1, 4), help="questions per sample", low=1, high=64)


def build(draw: Draw, knobs: KvKnobs) -> Item:
    num_pairs = draw.size(knobs.num_pairs)
    spelled = draw.rng.random() < knobs.spelled_share
    keys = draw.distinct_spelled(num_pairs) if spelled else draw.distinct(num_pairs, knobs.key_words)
    values = [_value(draw, knobs) for _ in keys]
    pairs = dict(zip(keys, values, strict=True))
    asked = draw.rng.sample(keys, min(len(keys), draw.size(knobs.num_queries)))
    return Item(
        pieces=(Piece(text=lines(pairs), depth=draw.depth),),
        exchanges=tuple(exchange(draw, key, pairs[key]) for key in asked),
        metadata={"keys": [asked[-1], pairs[asked[-1]]], "num_pairs": len(keys)},
    )


def lines(pairs: Mapping[str, str]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in pairs.items())


def exchange(draw: Draw, key: str, value: str) -> Exchange:
    return Exchange(
        question=draw.question(ASK).format(key=key),
        answer=value,
        reasoning=f"The list has {key}: {value}.",
        cue=f"- {key}:",
        lead=f"- {key}:",
    )


def _value(draw: Draw, knobs: KvKnobs) -> str:
    if draw.rng.random() < knobs.spelled_share:
        return draw.spelled()
    return draw.value(draw.size(knobs.value_words))


KV = Task(name="kv", summary="values of keys in a list of pairs", knobs=KvKnobs, build=build, phrases=(ASK,))
