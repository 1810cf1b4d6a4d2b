"""list-index: numbered lines; give one by its number."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

ASK = Phrases(
    training=(
        "What is on line {n}?",
        "Give line {n}.",
        "Which words stand on line {n}?",
        "Copy line {n} of the list.",
        "What does line {n} say?",
        "Read line {n}.",
        "Return item {n} of the list.",
        "Show me number {n}.",
        "Line {n}, please.",
        "Line {n}?",
        "What is number {n}?",
        "Tell me what line {n} is.",
        "I need line {n} of the list.",
        "Go to line {n} and read it.",
        "Which item has the number {n}?",
        "The words of line {n}, please.",
    ),
    held_out=("Please quote line {n}.", "Item {n} of the list reads how?"),
)


@dataclass(frozen=True, kw_only=True)
class ListIndexKnobs(Knobs):
    num_lines: Span = setting((5, 60), help="lines of the list", low=1, high=4096)
    num_queries: Span = setting((1, 4), help="questions per sample", low=1, high=64)
    line_words: Span = setting((2, 5), help="words of a line", low=1, high=16)


def build(draw: Draw, knobs: ListIndexKnobs) -> Item:
    lines = [draw.words(draw.size(knobs.line_words)) for _ in range(draw.size(knobs.num_lines))]
    places = draw.rng.sample(range(len(lines)), min(len(lines), draw.size(knobs.num_queries)))
    exchanges = tuple(
        Exchange(
            question=draw.question(ASK).format(n=place + 1),
            answer=lines[place],
            reasoning=f"Line {place + 1} is: {lines[place]}",
            cue=f"{place + 1}.",
            lead=f"{place + 1}.",
        )
        for place in places
    )
    text = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
    return Item(
        pieces=(Piece(text=text, depth=draw.depth),),
        exchanges=exchanges,
        metadata={"keys": lines[places[-1]].split(), "num_lines": len(lines)},
    )


LIST_INDEX = Task(
    name="list-index", summary="a numbered line by its number", knobs=ListIndexKnobs, build=build, phrases=(ASK,)
)
