"""quick: the quick-instruction tokens for domain, search query and title, which cost a few tokens on a cached prompt.

``<｜domain｜>`` and ``<｜query｜>`` stand right behind the user's text, ``<｜title｜>`` behind the first answer's end
mark.
"""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases, capital

DOMAIN, QUERY, TITLE = "<｜domain｜>", "<｜query｜>", "<｜title｜>"

TOPICS = {
    "code": Phrases(
        training=("sort a list", "read a file", "fix a bug", "call a function", "test a module", "parse a string"),
        held_out=("write a loop", "import a package"),
    ),
    "cooking": Phrases(
        training=("bake bread", "boil rice", "fry an egg", "cook soup", "make a cake", "roast a chicken"),
        held_out=("mix a salad", "prepare a sauce"),
    ),
    "garden": Phrases(
        training=("plant a tree", "cut the grass", "grow roses", "water a garden", "pick apples", "sow seeds"),
        held_out=("trim a hedge", "grow tomatoes"),
    ),
    "health": Phrases(
        training=("treat a cold", "sleep better", "heal a wound", "stop a headache", "lower a fever", "eat well"),
        held_out=("calm a cough", "rest a sore back"),
    ),
    "money": Phrases(
        training=("save money", "open an account", "pay a tax", "get a loan", "sell a share", "plan a budget"),
        held_out=("send a bill", "change money"),
    ),
    "music": Phrases(
        training=("play the piano", "tune a guitar", "sing a song", "learn the drums", "write a tune", "read notes"),
        held_out=("join a choir", "record a song"),
    ),
    "sport": Phrases(
        training=("kick a ball", "run a race", "swim faster", "win a match", "train a team", "jump higher"),
        held_out=("throw a ball", "lift weights"),
    ),
    "travel": Phrases(
        training=("book a flight", "find a hotel", "pack a bag", "take a train", "visit a city", "read a map"),
        held_out=("rent a car", "cross a border"),
    ),
}
PROMPT = Phrases(
    training=(
        "How do I {topic} in {place}?",
        "What is the best way to {topic} in {place}?",
        "Tell me how to {topic} in {place}.",
        "I want to {topic} in {place}.",
        "Can you help me to {topic} in {place}?",
        "Is it hard to {topic} in {place}?",
        "Why would one {topic} in {place}?",
        "I have never tried to {topic} in {place}.",
    ),
    held_out=("Give me advice on how to {topic} in {place}.", "My friend asks how to {topic} in {place}."),
)
ANSWER = Phrases(
    training=(
        "Take your time.",
        "It is not hard.",
        "Start with a small step.",
        "Ask somebody who knows.",
        "Try it and see.",
        "First make a plan.",
    ),
    held_out=("Go on step by step.", "That needs some practice."),
)


@dataclass(frozen=True, kw_only=True)
class QuickKnobs(Knobs):
    num_classes: Span = setting((8, 8), help="domains to tell apart", low=1, high=len(TOPICS))


def build(draw: Draw, knobs: QuickKnobs) -> Item:
    domain = draw.rng.choice(list(TOPICS)[: draw.size(knobs.num_classes)])
    topic, place = draw.phrase(TOPICS[domain]), draw.name()
    token = draw.rng.choice((DOMAIN, QUERY, TITLE))
    answer = {DOMAIN: domain, QUERY: f"{topic} {place}", TITLE: f"{capital(topic)} in {place}"}[token]
    exchange = Exchange(
        question=draw.phrase(PROMPT).format(topic=topic, place=place),
        answer=draw.phrase(ANSWER) if token == TITLE else "",
    )
    return Item(exchanges=(exchange,), quick=(token, answer), metadata={"keys": [place], "domain": domain})


QUICK = Task(
    name="quick",
    summary="domain, query and title after their quick-instruction tokens",
    knobs=QuickKnobs,
    build=build,
    phrases=(PROMPT, ANSWER, *TOPICS.values()),
    kinds=("chat",),
    thinks=False,
    fills=False,
)
