"""talk: a conversation of some turns: greetings, things that the user tells and asks for, then or later, and requests
that a very small model has to decline."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

from pelagos.common.fields import setting
from pelagos.training.tasks import calc_tool, greeting, kv, needle
from pelagos.training.tasks.item import UNKNOWN, Draw, Exchange, Item
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

DECLINED, NO_CALCULATOR = "I am too small a model for that.", "I need a calculator for that."
BEYOND = Phrases(
    training=(
        "Write a poem about {word}.",
        "Tell me a joke.",
        "Tell me a story about {word}.",
        "Explain {word} to me.",
        "Why is there {word}?",
        "What do you think of {word}?",
        "Translate {word} into French.",
        "Write a program that finds {word}.",
        "How does {word} work?",
        "What is the weather like today?",
        "What time is it?",
        "Who won the match?",
        "Give me a recipe with {word}.",
        "Write a letter about {word} to {name}.",
        "What should I do about {word}?",
        "Sing a song.",
        "Do you like {word}?",
        "How far is it to {name}?",
        "Who invented {word}?",
        "Summarize the news.",
        "Plan a trip to {name} for me.",
        "What is the difference between {word} and {other}?",
        "Is {word} better than {other}?",
        "Give me ten ideas for {word}.",
        "Can you draw {word}?",
        "Where can I buy {word}?",
        "Correct my text about {word}.",
        "Let us play a game.",
    ),
    held_out=("Write an essay on {word}.", "Tell me something funny about {word}."),
)


@dataclass(frozen=True, kw_only=True)
class TalkKnobs(Knobs):
    num_turns: Span = setting((1, 6), help="turns of a conversation", low=1, high=64)
    num_pairs: Span = setting((1, 6), help="pairs of a list that the user gives", low=1, high=64)
    num_facts: Span = setting((1, 2), help="sentences that the user gives instead", low=1, high=16)


class _Thing(NamedTuple):
    """Something that the user has told."""

    subject: str
    value: str
    ask: Callable[[], Exchange]


def build(draw: Draw, knobs: TalkKnobs) -> Item:
    told: list[_Thing] = []
    exchanges: list[Exchange] = []
    keys: list[str] = []
    for _ in range(draw.size(knobs.num_turns)):
        weights = {
            "greeting": 2.0,
            "tells": 3.0,
            "unknown": 1.0,
            "sum": 0.4,
            "beyond": 1.2,
            "again": 4.0 if told else 0.0,
        }
        [kind] = draw.rng.choices(list(weights), weights=list(weights.values()))
        if kind == "greeting":
            exchange, keys = greeting.exchange(draw)
        elif kind == "tells":
            exchange, keys = _tells(draw, knobs, told)
        elif kind == "unknown":
            exchange, keys = _unknown(draw, told)
        elif kind == "sum":
            exchange, keys = _sum(draw), []
        elif kind == "beyond":
            exchange, keys = _beyond(draw), []
        else:
            thing = draw.rng.choice(told)
            exchange, keys = thing.ask(), [thing.subject, thing.value]
        exchanges.append(exchange)
    return Item(exchanges=tuple(exchanges), connected=True, metadata={"keys": keys})


def _tells(draw: Draw, knobs: TalkKnobs, told: list[_Thing]) -> tuple[Exchange, list[str]]:
    """Things and a question for one of them, in one message."""
    known = {thing.subject for thing in told}
    text, things = _list(draw, knobs, known) if draw.rng.random() < 0.5 else _facts(draw, knobs, known)
    told += things
    thing = draw.rng.choice(things)
    asked = thing.ask()
    message = text + draw.rng.choice((" ", "\n", "\n\n")) + asked.question
    return dataclasses.replace(asked, question=message), [thing.subject, thing.value]


def _list(draw: Draw, knobs: TalkKnobs, known: Collection[str]) -> tuple[str, list[_Thing]]:
    number = draw.size(knobs.num_pairs)
    keys = draw.distinct_spelled(number) if draw.rng.random() < 0.3 else draw.distinct(number, (1, 2))
    pairs = {key: draw.value(draw.size((1, 4))) for key in keys if key not in known} or {draw.name(): draw.words(1)}
    things = [_Thing(key, value, functools.partial(kv.exchange, draw, key, value)) for key, value in pairs.items()]
    return kv.lines(pairs), things


def _facts(draw: Draw, knobs: TalkKnobs, known: Collection[str]) -> tuple[str, list[_Thing]]:
    texts, things = [], []
    for _ in range(draw.size(knobs.num_facts)):
        name = next(name for name in iter(draw.name, None) if name not in known)
        fact = needle.fact(draw, name, needle.NeedleKnobs())
        texts.append(draw.statement(needle.TELL).format(**fact))
        things.append(_Thing(name, fact["value"], functools.partial(needle.exchange, draw, fact, texts[-1])))
        known = {*known, name}
    return " ".join(texts), things


def _unknown(draw: Draw, told: list[_Thing]) -> tuple[Exchange, list[str]]:
    known = {thing.subject for thing in told}
    if draw.rng.random() < 0.5:
        key = next(key for key in iter(lambda: draw.words(1), None) if key not in known)
        question = draw.question(kv.ASK).format(key=key)
    else:
        key = next(name for name in iter(draw.name, None) if name not in known)
        question = draw.question(needle.ASK).format(name=key, thing=draw.rng.choice(needle.THINGS))
    return Exchange(question=question, answer=UNKNOWN, reasoning=f"Nothing is said about {key}."), [key]


def _sum(draw: Draw) -> Exchange:
    what, _, _ = calc_tool.split_sum(draw, calc_tool.CalcToolKnobs(num_operations=(1, 2)))
    question = draw.question(calc_tool.ASK).format(what=what)
    return Exchange(question=question, answer=NO_CALCULATOR, reasoning="There is no calculator here.")


def _beyond(draw: Draw) -> Exchange:
    question = draw.question(BEYOND).format(word=draw.words(1), other=draw.words(1), name=draw.name())
    return Exchange(question=question, answer=DECLINED, reasoning="A very small model cannot do that.")


TALK = Task(
    name="talk",
    summary="some turns about this and that; things told are asked for later",
    knobs=TalkKnobs,
    build=build,
    phrases=(BEYOND, *greeting.REPLIES, kv.ASK, needle.TELL, needle.ASK, calc_tool.ASK),
    kinds=("chat",),
    fills=False,
)
