"""greeting: hello, who are you, thanks, goodbye. One fixed reply to each, so that it can be graded."""

from dataclasses import dataclass

from pelagos.training.tasks.item import Draw, Exchange, Item
from pelagos.training.tasks.knobs import Knobs
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

HELLO = Phrases(
    training=(
        "Hello!",
        "Hi",
        "Hi there!",
        "Hey",
        "Good morning!",
        "Good evening.",
        "hello",
        "Hello, how are you?",
        "hi",
        "Hey!",
        "Good day!",
        "Hello there.",
    ),
    held_out=("Good afternoon!", "Hey there"),
)
NAMED = Phrases(
    training=(
        "Hello, I am {name}.",
        "Hi, my name is {name}.",
        "I am {name}.",
        "My name is {name}, hello!",
        "This is {name}.",
        "{name} here.",
        "Hi! They call me {name}.",
        "Hello! {name} is my name.",
    ),
    held_out=("Hey, {name} speaking.", "You can call me {name}."),
)
WHO = Phrases(
    training=(
        "Who are you?",
        "What are you?",
        "What is your name?",
        "Are you a human?",
        "Tell me who you are.",
        "Please introduce yourself.",
        "Which model are you?",
        "Say something about yourself.",
        "How should I address you?",
        "What do people call you?",
        "Are you a robot?",
        "Is this a machine?",
        "Am I speaking with a person?",
        "Do you have a name?",
        "Who am I talking to?",
        "what are you",
    ),
    held_out=("What should I call you?", "Am I talking to a machine?"),
)
CAN = Phrases(
    training=(
        "What can you do?",
        "How can you help me?",
        "What are you good at?",
        "What may I ask you?",
        "Which tasks can you do?",
        "Tell me what you can do.",
        "What are you for?",
        "Help",
        "Show me what you can do.",
        "What do you know how to do?",
        "Tell me a little about what you can do.",
        "What are you able to do?",
        "What are you made for?",
        "What are you best for?",
        "What can I use you for?",
        "Do you have any skills?",
    ),
    held_out=("Give me an idea of what you can do.", "What do you do best?"),
)
THANKS = Phrases(
    training=(
        "Thanks!",
        "Thank you.",
        "Thank you very much!",
        "Many thanks.",
        "Thanks a lot.",
        "Great, thanks.",
        "That helped, thank you!",
        "thanks",
    ),
    held_out=("Thanks so much!", "Good, thank you."),
)
BYE = Phrases(
    training=(
        "Bye",
        "Goodbye!",
        "See you.",
        "Bye bye!",
        "See you later!",
        "Good night.",
        "I have to go.",
        "Farewell.",
        "bye",
        "Until next time!",
        "See you soon.",
        "I am leaving now.",
    ),
    held_out=("So long!", "See you tomorrow."),
)
REPLIES = {
    HELLO: "Hello! How can I help you?",
    NAMED: "Hello, {name}! How can I help you?",
    WHO: "I am Pelagos, a very small language model.",
    CAN: "I can find things in a long text, use a calculator, and remember values with a tool.",
    THANKS: "You are welcome!",
    BYE: "Goodbye!",
}


@dataclass(frozen=True, kw_only=True)
class GreetingKnobs(Knobs):
    """Nothing of its own."""


def exchange(draw: Draw) -> tuple[Exchange, list[str]]:
    """One of them, and what in it is drawn from the split."""
    phrases = draw.rng.choice(list(REPLIES))
    name = draw.name()
    greeted = Exchange(
        question=draw.phrase(phrases).format(name=name),
        answer=REPLIES[phrases].format(name=name),
        reasoning="A short and friendly reply will do.",
    )
    return greeted, [name] if phrases is NAMED else []


def build(draw: Draw, knobs: GreetingKnobs) -> Item:
    greeted, keys = exchange(draw)
    return Item(exchanges=(greeted,), metadata={"keys": keys})


GREETING = Task(
    name="greeting",
    summary="replies to hello, thanks, goodbye and who are you",
    knobs=GreetingKnobs,
    build=build,
    phrases=tuple(REPLIES),
    kinds=("chat",),
    fills=False,
)
