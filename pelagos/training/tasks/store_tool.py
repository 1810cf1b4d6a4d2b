"""store-tool: things to remember with put, and to tell with get, over several turns."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import UNKNOWN, Draw, Exchange, Item, Step
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.needle import THINGS
from pelagos.training.tasks.sample import Call
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.tools import NOT_FOUND, run_tool
from pelagos.training.tasks.words import Phrases

SAVED = "Saved."

PUT = Phrases(
    training=(
        "Remember that the {thing} of {name} is {value}.",
        "Store this: the {thing} of {name} is {value}.",
        "Save {value} as the {thing} of {name}.",
        "The {thing} of {name} is {value}. Keep it for me.",
        "Note down {value}, the {thing} of {name}.",
        "Please keep in mind: the {thing} of {name} is {value}.",
        "Set the {thing} of {name} to {value}.",
        "Put {value} down as the {thing} of {name}.",
        "For {name} the {thing} is {value}. Remember it.",
        "Memorize: the {thing} of {name} is {value}.",
        "I want you to store {value} as the {thing} of {name}.",
        "The {thing} of {name} has changed to {value}.",
        "Let the {thing} of {name} be {value}.",
        "From now on the {thing} of {name} is {value}.",
        "{name} has a {thing}: {value}. Save that.",
        "Take {value} as the {thing} of {name}.",
        "{value} is what I want as the {thing} of {name}.",
        "Keep {value} for me: it belongs to {name} as the {thing}.",
        "Bear in mind that {name} has {value} as the {thing}.",
        "Here is {value}, the new {thing} for {name}.",
    ),
    held_out=("Write down that {name} has the {thing} {value}.", "Do not forget {value}, it is the {thing} of {name}."),
)
GET = Phrases(
    training=(
        "What is the {thing} of {name}?",
        "Tell me the {thing} of {name}.",
        "Which {thing} did I give you for {name}?",
        "What did I say is the {thing} of {name}?",
        "Give me back the {thing} of {name}.",
        "I forgot the {thing} of {name}. What is it?",
        "Look up the {thing} of {name}.",
        "Do you still have the {thing} of {name}?",
        "The {thing} of {name}, please.",
        "And the {thing} of {name}?",
        "For {name}, what is the {thing}?",
        "Say the {thing} of {name} again.",
        "I need the {thing} of {name}.",
        "Which {thing} does {name} have?",
        "What was the {thing} of {name}?",
        "Find the {thing} of {name} in your store.",
    ),
    held_out=("Remind me of the {thing} of {name}.", "Please fetch the {thing} of {name}."),
)


@dataclass(frozen=True, kw_only=True)
class StoreToolKnobs(Knobs):
    num_turns: Span = setting((2, 6), help="turns of the user; the last one asks", low=1, high=32)
    missing_share: float = setting(0.15, help="share of samples that ask for what was never stored", low=0, high=1)
    num_digits: Span = setting((4, 6), help="digits of a value that is a number, as every second is", low=4, high=9)


def build(draw: Draw, knobs: StoreToolKnobs) -> Item:
    num_turns = draw.size(knobs.num_turns)
    missing = draw.rng.random() < knobs.missing_share or num_turns == 1
    store: dict[str, str] = {}
    told: list[tuple[str, str]] = []  # name, thing
    exchanges: list[Exchange] = []
    while len(exchanges) < num_turns - 1:
        action = draw.rng.random()
        if told and action < 0.2:
            exchanges.append(_get(draw, store, *draw.rng.choice(told)))
        else:  # something new, or another value for something told before
            about = draw.rng.choice(told) if told and action < 0.35 else (draw.name(), draw.rng.choice(THINGS))
            told.append(about)
            exchanges.append(_put(draw, knobs, store, *about))
    name, thing = (draw.name(), draw.rng.choice(THINGS)) if missing else draw.rng.choice(told)
    exchanges.append(_get(draw, store, name, thing))
    return Item(
        exchanges=tuple(exchanges),
        grader="final",
        tools=("put", "get"),
        metadata={"keys": [name], "turns": num_turns},
    )


def _put(draw: Draw, knobs: StoreToolKnobs, store: dict[str, str], name: str, thing: str) -> Exchange:
    # No words: an argument has no space in front of it, so they would be other tokens in the call than in the question.
    value = str(draw.number(draw.size(knobs.num_digits))) if draw.rng.random() < 0.5 else draw.name()
    key = f"{thing} of {name}"
    call = Call(name="put", arguments={"key": key, "value": value})
    step = Step(calls=(call,), results=(run_tool(call.name, call.arguments, store),), reasoning=f"I store the {key}.")
    question = draw.question(PUT).format(thing=thing, name=name, value=value)
    return Exchange(question=question, answer=SAVED, reasoning="It is stored.", steps=(step,))


def _get(draw: Draw, store: dict[str, str], name: str, thing: str) -> Exchange:
    key = f"{thing} of {name}"
    call = Call(name="get", arguments={"key": key})
    result = run_tool(call.name, call.arguments, store)
    step = Step(calls=(call,), results=(result,), reasoning=f"I look up the {key}.")
    known = result != NOT_FOUND
    return Exchange(
        question=draw.question(GET).format(thing=thing, name=name),
        answer=result if known else UNKNOWN,
        reasoning=f"The store has {result}." if known else "The store does not have it.",
        steps=(step,),
    )


STORE_TOOL = Task(
    name="store-tool",
    summary="values kept in a key-value tool over several turns",
    knobs=StoreToolKnobs,
    build=build,
    phrases=(PUT, GET),
    kinds=("chat",),
)
