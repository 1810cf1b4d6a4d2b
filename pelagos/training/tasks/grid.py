"""The samples behind a recall heat map: one fact in a long text, at every depth of every length."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelagos.chat.tokenizer import Tokenizer
from pelagos.training.tasks.item import Item, TextSource
from pelagos.training.tasks.needle import NEEDLE, NeedleKnobs
from pelagos.training.tasks.sample import Kind, Sample


@dataclass(frozen=True, kw_only=True)
class GridSample:
    """``sample`` number ``index`` of the cell of this length (tokens of the whole sample) and depth (0 to 1)."""

    length: int
    depth: float
    index: int
    sample: Sample


def evaluation_grid(
    lengths: Sequence[int],
    depths: Sequence[float],
    num_samples: int,
    seed: int,
    *,
    tokenizer: Tokenizer,
    haystack: TextSource | None = None,
    kind: Kind = "chat",
) -> Iterator[GridSample]:
    """``num_samples`` single-needle samples per cell, made one by one as they are asked for, shortest first.

    Names, values and wording are from the test side. A cell's samples depend on the seed and the cell, not on which
    other cells there are. Raises ConfigError for a length or depth out of range, or a length too short for a fact.
    """
    for length in sorted(lengths):
        for depth in depths:
            knobs = _knobs(1, length, depth, kind)
            for index in range(num_samples):
                rng = random.Random(f"{seed} {length} {depth} {index}")
                sample = NEEDLE.make(rng, knobs, tokenizer=tokenizer, held_out=True, haystack=haystack)
                yield GridSample(length=length, depth=depth, index=index, sample=sample)


def shared_texts(
    lengths: Sequence[int],
    depths: Sequence[float],
    num_samples: int,
    seed: int,
    *,
    tokenizer: Tokenizer,
    haystack: TextSource | None = None,
) -> Iterator[list[GridSample]]:
    """The same cells from fewer texts: each text holds a fact at every depth, and is the start of one conversation per
    depth, which asks for the fact there. ``num_samples`` texts per length; otherwise as ``evaluation_grid``."""
    for length in sorted(lengths):
        knobs = _knobs(len(depths), length, 1.0, "chat")
        for index in range(num_samples):
            rng = random.Random(f"{seed} {length} {index} shared")
            spread = dataclasses.replace(NEEDLE, build=lambda draw, knobs: _spread(NEEDLE.build(draw, knobs), depths))
            sample = spread.make(rng, knobs, tokenizer=tokenizer, held_out=True, haystack=haystack)
            asked = [_question(sample, number) for number in range(len(depths))]
            yield [
                GridSample(length=length, depth=depth, index=index, sample=sample)
                for depth, sample in zip(depths, asked, strict=True)
            ]


def _knobs(num_facts: int, length: int, depth: float, kind: Kind) -> NeedleKnobs:
    return NeedleKnobs(
        num_needles=(num_facts, num_facts),
        target_tokens=(length, length),
        depth=(depth, depth),
        chat_share=1.0 if kind == "chat" else 0.0,
        thinking_share=0.0,
        cue_share=0.0,
    )


def _spread(item: Item, depths: Sequence[float]) -> Item:
    """The item with its facts at these depths."""
    pieces = (dataclasses.replace(piece, depth=d) for piece, d in zip(item.pieces, depths, strict=True))
    return dataclasses.replace(item, pieces=tuple(pieces))


def _question(sample: Sample, number: int) -> Sample:
    """The sample with one of its questions alone."""
    question, answer = sample.turns[2 * number : 2 * number + 2]
    asked = (*sample.turns[0].segments[:-1], question.segments[-1])
    return dataclasses.replace(
        sample, turns=(dataclasses.replace(question, segments=asked), answer), answer=answer.text, metadata={}
    )
