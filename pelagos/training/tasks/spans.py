"""copy and reverse: repeat a short row of words, forwards or backwards."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

COPY_ASK = Phrases(
    training=(
        "Repeat the row.",
        "Copy the row.",
        "Say the words of the row again.",
        "Write the row once more.",
        "What are the words of the row?",
        "Give the row as it is.",
        "Echo the row.",
        "Type the row again, word by word.",
        "Again, please.",
        "Repeat it.",
        "Give me the same row.",
        "What does the row say?",
        "Read the row aloud.",
        "The row once again.",
        "Write it down as it stands.",
        "Tell me all words of the row in order.",
    ),
    held_out=("Reproduce the row exactly.", "Recite the row."),
)
REVERSE_ASK = Phrases(
    training=(
        "Repeat the row backwards.",
        "Reverse the row.",
        "Say the words of the row from last to first.",
        "Write the row in reverse order.",
        "What is the row from its end to its start?",
        "Give the row the other way round.",
        "Turn the row around.",
        "Type the row again, last word first.",
    ),
    held_out=("Flip the order of the row.", "Recite the row, starting at its end."),
)


@dataclass(frozen=True, kw_only=True)
class SpanKnobs(Knobs):
    num_words: Span = setting(
        (4, 16), help="words of the row, each a token where the vocabulary has it", low=1, high=64
    )


def _build(draw: Draw, knobs: SpanKnobs, ask: Phrases, backwards: bool) -> Item:
    row = draw.words(draw.size(knobs.num_words)).split()
    answer = " ".join(reversed(row) if backwards else row)
    exchange = Exchange(
        question=draw.question(ask),
        answer=answer,
        reasoning=f"The row has {len(row)} words.",
        cue="Backwards:" if backwards else "Row:",
        lead="Backwards:" if backwards else "Row:",
    )
    piece = Piece(text=f"Row: {' '.join(row)}", depth=draw.depth)
    return Item(pieces=(piece,), exchanges=(exchange,), metadata={"keys": row})


def build_copy(draw: Draw, knobs: SpanKnobs) -> Item:
    return _build(draw, knobs, COPY_ASK, backwards=False)


def build_reverse(draw: Draw, knobs: SpanKnobs) -> Item:
    return _build(draw, knobs, REVERSE_ASK, backwards=True)


COPY = Task(name="copy", summary="a row of words again", knobs=SpanKnobs, build=build_copy, phrases=(COPY_ASK,))
REVERSE = Task(
    name="reverse", summary="a row of words backwards", knobs=SpanKnobs, build=build_reverse, phrases=(REVERSE_ASK,)
)
