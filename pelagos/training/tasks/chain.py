"""chain: a is b, b is c, c is a value; ask for a. Of several chains each is asked for."""

from dataclasses import dataclass
from itertools import pairwise

from pelagos.common.fields import setting
from pelagos.training.tasks.item import Draw, Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs, Span
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.words import Phrases

TELL = Phrases(
    training=(
        "Let {key} = {value}.",
        "We have {key} = {value}.",
        "Here {key} is {value}.",
        "Take {key} to be {value}.",
        "The value of {key} is {value}.",
        "It holds that {key} = {value}.",
        "By definition {key} is {value}.",
        "Assume that {key} = {value}.",
    ),
    held_out=("Suppose {key} equals {value}.", "Write {key} for {value}."),
)
ASK = Phrases(
    training=(
        "What is {key} in the end?",
        "Follow the chain: what is {key}?",
        "Which final value does {key} have?",
        "Work out {key}.",
        "Find the value of {key}.",
        "What does {key} come down to?",
        "Trace {key} to its value.",
        "Give the value that {key} leads to.",
        "What is {key}?",
        "And {key}?",
        "At last, what is {key}?",
        "The value of {key}, please.",
    ),
    held_out=("Resolve {key} to its final value.", "If you follow all steps, what is {key}?"),
)


@dataclass(frozen=True, kw_only=True)
class ChainKnobs(Knobs):
    num_hops: Span = setting((1, 3), help="steps from one variable to the next before the value", low=1, high=16)
    num_others: Span = setting((0, 3), help="other chains of the same length", low=0, high=64)
    value_words: Span = setting((1, 1), help="words of a value", low=1, high=4)


def build(draw: Draw, knobs: ChainKnobs) -> Item:
    num_hops = draw.size(knobs.num_hops)
    num_chains = 1 + draw.size(knobs.num_others)
    keys = draw.distinct(num_chains * (num_hops + 1))
    tell = draw.statement(TELL)
    pieces = []
    chains = []
    for chain in (keys[i::num_chains] for i in range(num_chains)):
        links = [*chain, draw.words(draw.size(knobs.value_words))]
        chains.append(links)
        # The first link stands where the sample's depth says, the others anywhere, in any order.
        depths = [draw.depth if links is chains[0] else draw.rng.random(), *(draw.rng.random() for _ in chain[1:])]
        pieces += [
            Piece(text=tell.format(key=key, value=value), depth=depth)
            for (key, value), depth in zip(pairwise(links), depths, strict=True)
        ]
    exchanges = tuple(
        Exchange(
            question=draw.question(ASK).format(key=links[0]),
            answer=links[-1],
            reasoning=", ".join(f"{key} is {value}" for key, value in pairwise(links)) + ".",
            cue=f"So in the end {links[0]} is",
            lead=f"So in the end {links[0]} is",
        )
        for links in reversed(chains)
    )
    metadata = {"keys": [chains[0][0], chains[0][-1]], "hops": num_hops}
    return Item(pieces=tuple(pieces), exchanges=exchanges, metadata=metadata)


CHAIN = Task(name="chain", summary="a variable defined by others", knobs=ChainKnobs, build=build, phrases=(TELL, ASK))
