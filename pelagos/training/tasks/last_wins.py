"""last-wins: variables are set several times; the last value of each counts."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

TELL = Phrases(
    training=(
        "Now {key} = {value}.",
        "Set {key} to {value}.",
        "Here {key} becomes {value}.",
        "From here on {key} is {value}.",
        "Let {key} be {value}.",
        "Change {key} to {value}.",
        "Update: {key} is {value}.",
        "Then {key} gets {value}.",
    ),
    held_out=("The new value of {key} is {value}.", "Put {value} into {key}."),
)
ASK = Phrases(
    training=(
        "What is {key} at the end?",
        "What is the last value of {key}?",
        "Which value does {key} have now?",
        "Give the final value of {key}.",
        "After all changes, what is {key}?",
        "What was {key} set to last?",
        "Tell me the current value of {key}.",
        "What does {key} hold in the end?",
        "What is {key} now?",
        "And {key} at the end?",
        "The last value of {key}, please.",
        "With what does {key} end?",
        "In the end, what is {key}?",
        "Say what {key} is after all that.",
    ),
    held_out=("Which value remains in {key}?", "Report the latest value of {key}."),
)


@dataclass(frozen=True, kw_only=True)
class LastWinsKnobs(Knobs):
    num_updates: Span = setting((1, 8), help="times the variable is set", low=1, high=64)
    num_others: Span = setting((0, 3), help="other variables, set as often", low=0, high=64)
    value_words: Span = setting((1, 2), help="words of a value", low=1, high=4)


def build(draw: Draw, knobs: LastWinsKnobs) -> Item:
    keys = draw.distinct(1 + draw.size(knobs.num_others))
    tell = draw.statement(TELL)
    pieces: list[Piece] = []
    values: dict[str, str] = {}
    for key in reversed(keys):  # the one asked for last comes last, so that its last update is the last of equal depth
        last = draw.depth if key == keys[0] else draw.rng.random()
        depths = [last * draw.rng.random() for _ in range(draw.size(knobs.num_updates) - 1)]
        for depth in [*sorted(depths), last]:
            values[key] = draw.words(draw.size(knobs.value_words))
            pieces.append(Piece(text=tell.format(key=key, value=values[key]), depth=depth))
    exchanges = tuple(
        Exchange(
            question=draw.question(ASK).format(key=key),
            answer=value,
            reasoning=f"The last line about {key} says {value}.",
            cue=f"At the end {key} is",
            lead=f"At the end {key} is",
        )
        for key, value in values.items()
    )
    return Item(pieces=tuple(pieces), exchanges=exchanges, metadata={"keys": [keys[0], values[keys[0]]]})


LAST_WINS = Task(
    name="last-wins",
    summary="the last value of a variable that is set several times",
    knobs=LastWinsKnobs,
    build=build,
    phrases=(TELL, ASK),
)
