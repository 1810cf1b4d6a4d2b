"""unknown: the questions of kv, needle and reading for something that nobody told. The answer is "I don't know."."""

from dataclasses import dataclass

from pelagos.common.fields import setting
from pelagos.training.tasks import kv, needle, reading
from pelagos.training.tasks.item import UNKNOWN, Draw, Exchange, Item
from pelagos.training.tasks.knobs import Knobs
from pelagos.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class UnknownKnobs(Knobs):
    nothing_share: float = setting(0.3, help="share of samples in which nothing at all was told", low=0, high=1)


def build(draw: Draw, knobs: UnknownKnobs) -> Item:
    told, question, key, cue = draw.rng.choice((_kv, _needle, _reading))(draw)
    exchange = Exchange(question=question, answer=UNKNOWN, reasoning=f"Nothing is said about {key}.", cue=cue)
    pieces = () if draw.rng.random() < knobs.nothing_share else told.pieces
    return Item(pieces=pieces, exchanges=(exchange,), metadata={"keys": [key], "told": bool(pieces)})


def _kv(draw: Draw) -> tuple[Item, str, str, str | None]:
    told = kv.build(draw, kv.KvKnobs())
    text = told.pieces[0].text
    key = next(key for key in iter(lambda: draw.words(1), None) if f"- {key}:" not in text)
    return told, draw.question(kv.ASK).format(key=key), key, f"- {key}:"


def _needle(draw: Draw) -> tuple[Item, str, str, str | None]:
    told = needle.build(draw, needle.NeedleKnobs())
    name = _new_name(draw, told)
    thing = draw.rng.choice(needle.THINGS)
    return told, draw.question(needle.ASK).format(name=name, thing=thing), name, f"The {thing} of {name} is"


def _reading(draw: Draw) -> tuple[Item, str, str, str | None]:
    told = reading.build(draw, reading.ReadingKnobs())
    name = _new_name(draw, told)
    attribute = draw.rng.choice(list(reading.FACTS))
    return told, draw.question(reading.ASK).format(name=name, attribute=attribute), name, None


def _new_name(draw: Draw, told: Item) -> str:
    text = " ".join(piece.text for piece in told.pieces)
    return next(name for name in iter(draw.name, None) if name not in text)


UNKNOWN_TASK = Task(
    name="unknown",
    summary='"I don\'t know." where the answer was not given',
    knobs=UnknownKnobs,
    build=build,
    phrases=(kv.ASK, needle.TELL, needle.ASK, reading.ASK),
)
