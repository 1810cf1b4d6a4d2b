"""reading: a short text about some people; a question about one of them."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

PLACE, JOB, PET, COLOUR, FOOD = "home town", "job", "pet", "favourite colour", "favourite food"
JOBS = ("baker", "builder", "driver", "farmer", "gardener", "lawyer", "nurse", "painter", "pilot", "teacher", "writer")
PETS = ("bird", "cat", "dog", "duck", "fish", "frog", "goat", "horse", "mouse", "rabbit", "snake", "turtle")
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
FOODS = ("apples", "beans", "bread", "cake", "carrots", "cheese", "honey", "nuts", "pears", "rice", "soup", "tomatoes")

# Sentences about "{who}", a name or, behind the first sentence, "This person".
FACTS = {
    PLACE: ("{who} lives in {value}.", "{who} has a house in {value}.", "The home of {who} is {value}."),
    JOB: ("{who} works as a {value}.", "{who} earns money as a {value}.", "By trade {who} is a {value}."),
    PET: ("{who} keeps a {value}.", "{who} owns a {value} as a pet.", "At home {who} has a {value}."),
    COLOUR: ("{who} likes the colour {value} best.", "{who} wears mostly {value}.", "{who} loves all that is {value}."),
    FOOD: (
        "{who} likes to eat {value}.",
        "{who} never says no to {value}.",
        "For {who} nothing is better than {value}.",
    ),
}
CHOICES = {JOB: JOBS, PET: PETS, COLOUR: COLOURS, FOOD: FOODS}

ASK = Phrases(
    training=(
        "What is the {attribute} of {name}?",
        "Which {attribute} does {name} have?",
        "Tell me the {attribute} of {name}.",
        "What do you know about the {attribute} of {name}?",
        "Read the text. What is the {attribute} of {name}?",
        "Name the {attribute} of {name}.",
        "I want to know the {attribute} of {name}.",
        "From the text, give the {attribute} of {name}.",
        "The {attribute} of {name}, please.",
        "And the {attribute} of {name}?",
        "For {name}, what is the {attribute}?",
        "Say the {attribute} of {name}.",
        "Can you find the {attribute} of {name}?",
        "What {attribute} is given for {name}?",
        "Look for {name}: which {attribute}?",
        "Which {attribute} did the text name for {name}?",
    ),
    held_out=("What does the text say about the {attribute} of {name}?", "Say what the {attribute} of {name} is."),
)


@dataclass(frozen=True, kw_only=True)
class ReadingKnobs(Knobs):
    num_people: Span = setting((1, 8), help="people in the text, each with their own paragraph", low=1, high=256)
    num_queries: Span = setting((1, 4), help="questions per sample", low=1, high=64)
    num_facts: Span = setting((2, 5), help="facts about each of them", low=1, high=5)


def build(draw: Draw, knobs: ReadingKnobs) -> Item:
    people: dict[str, dict[str, tuple[str, str]]] = {}  # name -> attribute -> value, sentence
    for name in draw.names(draw.size(knobs.num_people)):
        attributes = draw.rng.sample(list(FACTS), draw.size(knobs.num_facts))
        people[name] = {attribute: _fact(draw, name, attribute, i == 0) for i, attribute in enumerate(attributes)}
    told = [(name, attribute) for name, facts in people.items() for attribute in facts]
    asked = draw.rng.sample(told, min(len(told), draw.size(knobs.num_queries)))
    exchanges = tuple(
        Exchange(
            question=draw.question(ASK).format(attribute=attribute, name=name),
            answer=people[name][attribute][0],
            reasoning=f"About {name} the text says: {people[name][attribute][1]}",
        )
        for name, attribute in asked
    )
    text = "\n".join(" ".join(sentence for _, sentence in facts.values()) for facts in people.values())
    return Item(
        pieces=(Piece(text=text, depth=draw.depth),),
        exchanges=exchanges,
        metadata={"keys": [asked[-1][0]], "attribute": asked[-1][1]},
    )


def _fact(draw: Draw, name: str, attribute: str, first: bool) -> tuple[str, str]:
    value = draw.name() if attribute == PLACE else draw.rng.choice(CHOICES[attribute])
    who = name if first else "this person"
    sentence = draw.rng.choice(FACTS[attribute]).format(who=who, value=value)
    return value, sentence[0].upper() + sentence[1:]


READING = Task(name="reading", summary="a question about a short text", knobs=ReadingKnobs, build=build, phrases=(ASK,))
