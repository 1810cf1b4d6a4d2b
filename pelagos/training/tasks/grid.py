"""The samples behind a recall heat map: one fact in a long text, at every depth of every length."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelagos.chat.tokenizer import Tokenizer
from pelagos.training.tasks.item import TextSource
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
            knobs = NeedleKnobs(
                num_needles=(1, 1),
                target_tokens=(length, length),
                depth=(depth, depth),
                chat_share=1.0 if kind == "chat" else 0.0,
                thinking_share=0.0,
                cue_share=0.0,
            )
            for index in range(num_samples):
                rng = random.Random(f"{seed} {length} {depth} {index}")
                sample = NEEDLE.make(rng, knobs, tokenizer=tokenizer, held_out=True, haystack=haystack)
                yield GridSample(length=length, depth=depth, index=index, sample=sample)
