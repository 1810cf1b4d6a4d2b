"""needle: one to four facts somewhere in a long text, then questions for them."""

from collections.abc import Mapping
from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

THINGS = (
    "access code",
    "badge number",
    "locker code",
    "magic word",
    "password",
    "room number",
    "secret",
    "ticket number",
)

TELL = Phrases(
    training=(
        "The {thing} of {name} is {value}.",
        "Remember: the {thing} of {name} is {value}.",
        "{name} has the {thing} {value}.",
        "For {name} the {thing} is {value}.",
        "The {thing} that {name} uses is {value}.",
        "Note that {value} is the {thing} of {name}.",
        "It is written that the {thing} of {name} is {value}.",
        "By the way, {value} is the {thing} of {name}.",
        "{name} was given the {thing} {value}.",
        "The {thing} for {name}: {value}.",
        "{name} uses {value} as a {thing}.",
        "{value} was chosen as the {thing} of {name}.",
        "Please note the {thing} of {name}: {value}.",
        "Nobody but {name} knows that the {thing} is {value}.",
        "To {name} they gave {value} as the {thing}.",
        "{value}: that is the {thing} of {name}.",
        "What {name} keeps as the {thing} is {value}.",
        "As a {thing} {name} took {value}.",
        "The {thing} {value} was made for {name}.",
        "With {name}, {value} is the {thing}.",
    ),
    held_out=("As everybody knows, {name} has {value} as the {thing}.", "The {thing} belonging to {name} is {value}."),
)
ASK = Phrases(
    training=(
        "What is the {thing} of {name}?",
        "Tell me the {thing} of {name}.",
        "Which {thing} does {name} have?",
        "What {thing} does {name} use?",
        "Give the {thing} of {name}.",
        "Find the {thing} of {name} in the text.",
        "Do you know the {thing} of {name}?",
        "I need the {thing} of {name}.",
        "{name}: which {thing}?",
        "The {thing} of {name}, please.",
        "What {thing} belongs to {name}?",
        "Can you find the {thing} of {name}?",
        "What did the text say about the {thing} of {name}?",
        "I am looking for the {thing} that {name} has.",
        "For {name}, what is the {thing}?",
        "Say the {thing} of {name}.",
        "What is the {thing} that {name} uses?",
        "Somewhere it says which {thing} {name} has. Which one?",
        "Which {thing} was given to {name}?",
        "Is there a {thing} of {name}? Which one?",
    ),
    held_out=("According to the text, what is the {thing} of {name}?", "Please look up the {thing} of {name}."),
)


@dataclass(frozen=True, kw_only=True)
class NeedleKnobs(Knobs):
    num_needles: Span = setting((1, 4), help="facts in the text", low=1, high=64)
    value_words: Span = setting((1, 4), help="words of a value; four may be a number instead", low=1, high=4)
    num_digits: Span = setting((4, 7), help="digits of a value that is a number, as every second is", low=4, high=9)


def build(draw: Draw, knobs: NeedleKnobs) -> Item:
    names = draw.names(draw.size(knobs.num_needles))
    facts = [fact(draw, name, knobs) for name in names]
    # The last question is for the fact at the depth that was asked for.
    depths = [*(draw.rng.random() for _ in facts[1:]), draw.depth]
    pieces = [Piece(text=draw.statement(TELL).format(**f), depth=d) for f, d in zip(facts, depths, strict=True)]
    exchanges = tuple(exchange(draw, told, piece.text) for told, piece in zip(facts, pieces, strict=True))
    metadata = {"keys": [facts[-1]["name"], facts[-1]["value"]], "fact": pieces[-1].text}
    return Item(pieces=tuple(pieces), exchanges=exchanges, metadata=metadata)


def fact(draw: Draw, name: str, knobs: NeedleKnobs) -> dict[str, str]:
    """What the phrases above are filled with."""
    return {"name": name, "thing": draw.rng.choice(THINGS), "value": _value(draw, knobs)}


def exchange(draw: Draw, fact: Mapping[str, str], told: str) -> Exchange:
    """``told``: the sentence that says it."""
    return Exchange(
        question=draw.question(ASK).format(**fact),
        answer=fact["value"],
        reasoning=f"The text says: {told}",
        cue=f"The {fact['thing']} of {fact['name']} is",
        lead=f"The {fact['thing']} of {fact['name']} is",
    )


def _value(draw: Draw, knobs: NeedleKnobs) -> str:
    if draw.rng.random() < 0.5:
        return str(draw.number(draw.size(knobs.num_digits)))
    return draw.words(draw.size(knobs.value_words))


NEEDLE = Task(
    name="needle",
    summary="facts in a long text, at any depth and length",
    knobs=NeedleKnobs,
    build=build,
    phrases=(TELL, ASK),
)
