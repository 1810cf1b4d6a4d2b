"""count: how often does a word occur. A control task: it should stay hard."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

ASK = Phrases(
    training=(
        "How often does {key} occur in the words?",
        "Count {key} in the words.",
        "How many times is {key} among the words?",
        "What is the number of {key} in the words?",
        "How many of the words are {key}?",
        "Give the count of {key}.",
        "Among the words, how often is there {key}?",
        "Tell me how many times {key} stands there.",
    ),
    held_out=("Work out how frequent {key} is.", "Tally up {key}, please."),
)


@dataclass(frozen=True, kw_only=True)
class CountKnobs(Knobs):
    count: Span = setting((1, 20), help="times the word occurs", low=0, high=1000)
    num_others: Span = setting((5, 60), help="other words between", low=0, high=4096)


def build(draw: Draw, knobs: CountKnobs) -> Item:
    key = draw.words(1)
    count = draw.size(knobs.count)
    others = [word for word in draw.words(draw.size(knobs.num_others)).split() if word != key]
    words = [key] * count + others
    draw.rng.shuffle(words)
    exchange = Exchange(
        question=draw.phrase(ASK).format(key=key),
        answer=str(count),
        reasoning=f"I count {key} {count} times.",
        cue=f"Number of {key}:",
    )
    piece = Piece(text=f"Words: {' '.join(words)}", depth=draw.depth)
    return Item(pieces=(piece,), exchanges=(exchange,), metadata={"keys": [key], "num_words": len(words)})


COUNT = Task(name="count", summary="how often a word occurs", knobs=CountKnobs, build=build, phrases=(ASK,))
